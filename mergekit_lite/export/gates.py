"""Gates of a routed model: made beside the output before its rows run, told of in its manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.engine.events import Event
from mergekit_lite.export.labels import short_name
from mergekit_lite.export.stages import stage_folder
from mergekit_lite.plan.digests import file_sha256
from mergekit_lite.plan.types import GATE, Plan
from mergekit_lite.sources import Model, resolve

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit_lite.calibrate.texts import Text
    from mergekit_lite.engine.options import Options
    from mergekit_lite.moe.gates import Measure

MANIFEST_FILE = "moe_manifest.json"
MANIFEST_VERSION = 1


def gate_folder(out: Path) -> Path:
    """Return the folder in which the gates of an output are made."""
    return stage_folder(out, "gates")


def with_gates(
    plan: Plan,
    models: Mapping[str, Model],
    out: Path,
    options: Options,
    emit: Callable[[Event], None],
) -> dict[str, Model]:
    """Return the models with the gates of a routed model among them, made if they must be.

    Args:
        plan: what is to be run.
        models: its inputs, opened.
        out: final folder.
        options: how to run.
        emit: called with events.
    """
    if not plan.moe:
        return dict(models)
    from mergekit_lite.moe.gate_file import make_gates

    emit(Event("note", text=size_text(plan.moe)))

    def say(text: str) -> None:
        emit(Event("note", text=text))

    folder = gate_folder(out)
    path = make_gates(plan, models, folder, _measure(plan, models, folder, options, say), say)
    gates = resolve(str(path), relative_to=path.parent)
    return {**models, GATE: replace(gates, reference=GATE)}


@dataclass(frozen=True)
class Measured:
    """What the experts' texts have shown of the base, in a folder of statistics."""

    folder: Path
    domains: Sequence[str]

    def layer(self, kind: str, layer: int) -> Mapping[str, Tensor]:
        """Return what a collector has written of a layer, by name."""
        from mergekit_lite.calibrate.store import read_layer

        return read_layer(self.folder, kind, layer)


def _measure(
    plan: Plan,
    models: Mapping[str, Model],
    folder: Path,
    options: Options,
    say: Callable[[str], None],
) -> Measure:
    """Return what runs the experts' texts through the base when a method asks for it."""

    def measure(kinds: Sequence[str]) -> Measured:
        from mergekit_lite.calibrate.run import Settings, calibrate

        out = folder / f"statistics-{'-'.join(kinds)}"
        record = calibrate(
            models["base"],
            texts_of(plan),
            out,
            kinds=tuple(kinds),
            settings=Settings(device="cuda" if options.device == "cuda" else "cpu"),
            max_memory=options.max_memory,
            overwrite=True,
            tell=say,
        )
        return Measured(out, record["domains"])

    return measure


def texts_of(plan: Plan) -> list[Text]:
    """Return the texts of all experts; the domain is the expert's number, `-` after it for those
    that the expert is not for."""
    from mergekit_lite.calibrate.texts import prompts, read_texts

    found: list[Text] = []
    for number, expert in enumerate(plan.moe["experts"]):
        found += prompts(str(number), expert.get("prompts", ()))
        if data := expert.get("data"):
            texts = read_texts([(str(number), Path(plan.folder) / data)])
            found += [replace(text, domain=str(number)) for text in texts]
        found += prompts(f"{number}-", expert.get("negative", ()))
    return found


def size_text(moe: Mapping[str, Any]) -> str:
    """Return how large a routed model is, in words."""
    sizes = moe["parameters"]
    return (
        f"{moe['target']}: {len(moe['experts'])} experts, {moe['experts_per_token']} for each"
        f" token; {sizes['total']:,} parameters, {sizes['active']:,} of them for each token"
    )


def write_manifest(plan: Plan, out: Path, folder: Path) -> list[str]:
    """Write what a routed model is made of, and the files that its gates left; return their names.

    Args:
        plan: what was run.
        out: final folder, beside which the gates are.
        folder: of the output, which exists.
    """
    if not plan.moe:
        return []
    from mergekit_lite.moe.gate_file import BESIDE, GATE_FILE, read_facts

    made = gate_folder(out)
    written = []
    for file in sorted((made / BESIDE).iterdir()):
        shutil.copyfile(file, folder / file.name)
        written.append(file.name)
    moe = {key: value for key, value in plan.moe.items() if key not in ("rows", "experts")}
    manifest = {
        "manifest_version": MANIFEST_VERSION,
        **moe,
        "experts": [_expert(plan, entry) for entry in plan.moe["experts"]],
        "gate": {
            **plan.moe["gate"],
            "sha256": file_sha256(made / GATE_FILE),
            "made": read_facts(made),
        },
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
    return [*written, MANIFEST_FILE]


def _expert(plan: Plan, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return where an expert comes from; texts are counted, not repeated."""
    kept = {key: value for key, value in entry.items() if key not in ("prompts", "negative")}
    counts = {key: len(entry[key]) for key in ("prompts", "negative") if entry.get(key)}
    return {**kept, "model": short_name(plan.inputs[entry["expert"]]), **counts}


def remove_gates(plan: Plan, out: Path) -> None:
    """Remove the folder in which the gates were made."""
    if plan.moe:
        shutil.rmtree(gate_folder(out), ignore_errors=True)
