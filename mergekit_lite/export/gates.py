"""Gates of a routed model: made beside the output before its rows run, told of in its manifest."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.host import Host
from mergekit_lite.engine.events import Event
from mergekit_lite.export.grown import FREEZE_FILE, frozen, grown_facts, grown_text, with_grown
from mergekit_lite.export.labels import short_name
from mergekit_lite.export.merged import merged_facts, merged_text, with_merged
from mergekit_lite.export.mixed import mixed_card, mixed_facts, with_mixed
from mergekit_lite.export.orders import with_orders
from mergekit_lite.export.pruned import pruned_facts, pruned_text
from mergekit_lite.export.routers import routers_facts, routers_text, with_routers
from mergekit_lite.export.stages import stage_folder
from mergekit_lite.export.switched import switched_text, with_switched
from mergekit_lite.folders import write_json
from mergekit_lite.plan.digests import file_sha256
from mergekit_lite.plan.types import GATE, Plan
from mergekit_lite.sources import Model, resolve

if TYPE_CHECKING:
    from mergekit_lite.engine.options import Options
    from mergekit_lite.moe.carve._layer import Material
    from mergekit_lite.moe.gates import Measure

MANIFEST_FILE = "moe_manifest.json"
MANIFEST_VERSION = 1
_CHANGED: Mapping[str, Callable[[Plan], dict[str, Any]]] = {
    "pruned": pruned_facts,
    "merged": merged_facts,
    "grown": grown_facts,
    "mixture": mixed_facts,
}
"""What the manifest of a model says that was not assembled, by what was done to it."""


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
    if "grown" in plan.moe:
        return with_grown(plan, models, gate_folder(out), emit)
    if "merged" in plan.moe:
        return with_merged(plan, models, gate_folder(out), emit)
    if "mixture" in plan.moe:
        return with_mixed(plan, models, gate_folder(out), emit)
    if "orders" in plan.moe.get("dense", {}):
        return with_orders(plan, models, gate_folder(out))
    if "switched" in plan.moe:
        return with_switched(models, gate_folder(out))
    if "routers" in plan.moe:
        return with_routers(plan, models, gate_folder(out), _host(options, emit))
    if "gate" not in plan.moe:
        return dict(models)
    from mergekit_lite.moe.gate_file import make_gates

    host = _host(options, emit)
    host.say(size_text(plan.moe))
    with ExitStack() as stack:
        material = _material(plan, models, host, gate_folder(out), stack)
        measure = None if material else _measure(plan, models, host)
        path = make_gates(plan, models, gate_folder(out), measure, host.say, material)
    gates = resolve(str(path), relative_to=path.parent)
    return {**models, GATE: replace(gates, reference=GATE)}


def _host(options: Options, emit: Callable[[Event], None]) -> Host:
    """Return what texts are run on."""

    def say(text: str) -> None:
        emit(Event("note", text=text))

    return Host(say, "cuda" if options.device == "cuda" else "cpu", options.max_memory)


def _material(
    plan: Plan, models: Mapping[str, Model], host: Host, folder: Path, stack: ExitStack
) -> Material | None:
    """Return what reads the base that is carved; None where none is."""
    if "carve" not in plan.moe:
        return None
    from mergekit_lite.calibrate.carving import Base

    base = Base(plan, models, host, folder)
    stack.callback(base.close)
    return base


def _measure(plan: Plan, models: Mapping[str, Model], host: Host) -> Measure | None:
    """Return what runs texts, where the gates need any."""
    from mergekit_lite.moe.gates import registry

    if registry()[plan.moe["gate"]["method"]].needs == "nothing":
        return None
    from mergekit_lite.calibrate.gates import Measurer

    return Measurer(plan, models, host)


def size_text(moe: Mapping[str, Any]) -> str:
    """Return how large a routed model is, in words."""
    sizes, mapped = moe["parameters"], moe.get("expert_map")
    rows = f"{len(mapped)} rows of routers for " if mapped else ""
    count = max(mapped) + 1 if mapped else len(moe["experts"]) * moe.get("split", 1)
    return (
        f"{moe['target']}: {rows}{count} experts,"
        f" {moe['experts_per_token']} for each"
        f" token; {sizes['total']:,} parameters, {sizes['active']:,} of them for each token"
    )


def routed_text(moe: Mapping[str, Any]) -> str:
    """Return what a card says of a routed model."""
    if "routers" in moe:
        return routers_text(moe)
    if "switched" in moe:
        return switched_text(moe["switched"])
    if "pruned" in moe:
        return pruned_text(moe["pruned"])
    if "merged" in moe:
        return merged_text(moe["merged"])
    if "grown" in moe:
        return f"{grown_text(moe)} `{MANIFEST_FILE}` has the details."
    if "mixture" in moe:
        return mixed_card(moe, MANIFEST_FILE)
    if "dense" in moe:
        return f"Each routed layer is one feed-forward layer now: `{moe['dense']['method']}`."
    from mergekit_lite.moe.gates import name_of

    rows = ["| expert | made of | besides |", "|---|---|---|"]
    for number, expert in enumerate(moe["experts"]):
        besides = [f"{key} {expert[key]}" for key in ("residual_scale",) if key in expert]
        besides += [key for key in ("noise", "redraw") if key in expert]
        rows.append(f"| {number} | {name_of(expert)} | {', '.join(besides)} |")
    shared = moe["shared"]
    said = f" The shared expert is `{shared['expert']}`." if shared else ""
    gate = moe["gate"]["method"]
    training = " It is meant to be trained before it is used." if moe["for_training"] else ""
    return (
        f"{size_text(moe)}. Gates are made by `{gate}`.{said}{training}"
        f" `{MANIFEST_FILE}` has the details.\n\n" + "\n".join(rows)
    )


def write_manifest(plan: Plan, out: Path, folder: Path) -> list[str]:
    """Write what a routed model is made of, and the files that its gates left; return their names.

    Args:
        plan: what was run.
        out: final folder, beside which the gates are.
        folder: of the output, which exists.
    """
    if (facts := _facts(plan, gate_folder(out))) is not None:
        model = short_name(plan.inputs["base"])
        manifest = {"manifest_version": MANIFEST_VERSION, "model": model, **facts}
        write_json(folder / MANIFEST_FILE, manifest)
        if "grown" not in plan.moe:
            return [MANIFEST_FILE]
        write_json(folder / FREEZE_FILE, frozen(plan))
        return [MANIFEST_FILE, FREEZE_FILE]
    if "gate" not in plan.moe:
        return []
    from mergekit_lite.moe.gate_file import BESIDE, GATE_FILE, read_facts

    made = gate_folder(out)
    written = []
    for file in sorted(path for path in (made / BESIDE).rglob("*") if path.is_file()):
        name = file.relative_to(made / BESIDE)
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)
        written.append(name.as_posix())
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
    write_json(folder / MANIFEST_FILE, manifest)
    return [*written, MANIFEST_FILE]


def _facts(plan: Plan, made: Path) -> dict[str, Any] | None:
    """Return what the manifest says beside the model; None where gates, or nothing, were made.

    Args:
        plan: what was run.
        made: folder in which routers were fitted.
    """
    if "routers" in plan.moe:
        return routers_facts(plan, made)
    for key, facts in _CHANGED.items():
        if key in plan.moe:
            return facts(plan)
    return None


def _expert(plan: Plan, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return where an expert comes from; texts are counted, not repeated."""
    kept = {key: value for key, value in entry.items() if key not in ("prompts", "negative")}
    counts = {key: len(entry[key]) for key in ("prompts", "negative") if entry.get(key)}
    from mergekit_lite.moe.gates import name_of

    if entry.get("child") is not None:
        return {"expert": name_of(entry), "model": "two of the others", **counts}
    return {**kept, "model": short_name(plan.inputs[entry["expert"]]), **counts}


def remove_gates(plan: Plan, out: Path) -> None:
    """Remove the folder in which the gates were made."""
    if plan.moe.keys() & {"switched", "gate", "grown", "merged", "mixture", "dense", "routers"}:
        shutil.rmtree(gate_folder(out), ignore_errors=True)
