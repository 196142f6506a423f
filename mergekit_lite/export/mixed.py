"""Gates of a mixture of adapters: made beside the output before its rows run, told of after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.engine.events import Event
from mergekit_lite.export.labels import short_name
from mergekit_lite.plan.digests import file_sha256
from mergekit_lite.plan.types import GATE, Plan
from mergekit_lite.sources import Model, resolve

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergekit_lite.moe.lora.gates import Rows


def with_mixed(
    plan: Plan, models: Mapping[str, Model], folder: Path, emit: Callable[[Event], None]
) -> dict[str, Model]:
    """Return the models with the gates of a mixture among them.

    Args:
        plan: of a mixture of adapters.
        models: its inputs, opened.
        folder: where the file of gates is made.
        emit: called with events.

    Raises:
        DataError: factors or vectors hold NaN or infinity.
    """
    from mergekit_lite.moe.gate_file import GATE_FILE, write_tensors

    emit(Event("note", text=mixed_text(plan.moe)))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / GATE_FILE
    unfinished = path.with_suffix(".partial")
    write_tensors(unfinished, _tensors(plan, models), {})
    unfinished.replace(path)
    gates = resolve(str(path), relative_to=folder)
    return {**models, GATE: replace(gates, reference=GATE)}


def _tensors(plan: Plan, models: Mapping[str, Model]) -> dict[str, NDArray[np.float32]]:
    import numpy as np

    from mergekit_lite.engine.inputs import Readers
    from mergekit_lite.errors import DataError
    from mergekit_lite.moe.lora.gates import LORA_GATES, ModuleRequest
    from mergekit_lite.moe.lora.mixture import TASKS
    from mergekit_lite.moe.lora.vectors import read_tasks

    mixture = plan.moe["mixture"]
    names = [expert["expert"] for expert in mixture["experts"]]
    gate, params = LORA_GATES[mixture["gate"]["method"]], mixture["gate"]["params"]
    vectors = _vector_models(plan) if gate.vectors else []
    files = {str(number): model for number, model in enumerate(vectors)}
    readers, extra = Readers(models), Readers(files)
    found: dict[str, NDArray[np.float32]] = {}
    try:
        for module, facts in mixture["modules"].items():

            def matrix(source: str, name: str) -> Rows:
                value: Rows = readers.tensor(source, name).astype(np.float64)
                if not np.isfinite(value).all():
                    raise DataError(f"`{source}`: NaN or infinite entries", where=name)
                return value

            pairs = [
                pair and (matrix(name, pair[0]), matrix(name, pair[1]))
                for name, pair in zip(names, facts["pairs"], strict=True)
            ]
            own = [_vector(extra, key, files[key], module) for key in files]
            request = ModuleRequest(module, facts["inputs"], pairs, own, plan.seed)
            rows = gate.make(request, **params)
            if not np.isfinite(rows).all():
                raise DataError(f"the gate `{gate.name}` has rows that are not finite", module)
            found[f"{module}.gate"] = rows.astype(np.float32)
    finally:
        readers.close()
        extra.close()
    if mixture["tasks"]:
        table = read_tasks(Path(plan.folder) / Path(params["tasks"]).expanduser())
        found[TASKS] = np.array([table[name] for name in names], np.float32)
    return found


def _vector_models(plan: Plan) -> list[Model]:
    folder = Path(plan.folder)
    return [
        resolve(str(Path(expert["rows"]).expanduser()), relative_to=folder)
        for expert in plan.moe["mixture"]["experts"]
    ]


def _vector(readers: Any, key: str, model: Model, module: str) -> Rows:
    from mergekit_lite.moe.lora.vectors import vector_name

    found: Rows = readers.tensor(key, vector_name(model.header, module)).reshape(-1).astype(float)
    return found


def mixed_text(moe: Mapping[str, Any]) -> str:
    """Return what a mixture of adapters is, in words."""
    mixture, sizes = moe["mixture"], moe["parameters"]
    return (
        f"{len(mixture['experts'])} adapters in {len(mixture['modules'])} modules, of which each"
        f" token passes {mixture['experts_per_token']}; {sizes['total']:,} parameters, gates by"
        f" `{mixture['gate']['method']}`"
    )


def mixed_card(moe: Mapping[str, Any], name: str) -> str:
    """Return what a card says of a mixture of adapters; `name` is that of its manifest."""
    rows = ["| expert | adapter |", "|---|---|"]
    experts = moe["mixture"]["experts"]
    rows += [f"| {number} | {expert['expert']} |" for number, expert in enumerate(experts)]
    return (
        f"{mixed_text(moe)}. The code beside the weights runs in transformers; llama.cpp cannot"
        f" load it. `{name}` has the details.\n\n" + "\n".join(rows)
    )


def mixed_facts(plan: Plan) -> dict[str, Any]:
    """Return what the manifest of a mixture of adapters says."""
    mixture = plan.moe["mixture"]
    rows = {
        key: file_sha256(Path(plan.folder) / Path(file).expanduser())
        for key, file in _files(mixture).items()
    }
    return {
        "target": plan.moe["target"],
        "parameters": plan.moe["parameters"],
        **mixture,
        "experts": [
            {**expert, "model": short_name(plan.inputs[expert["expert"]])}
            for expert in mixture["experts"]
        ],
        "modules": {module: facts["rank"] for module, facts in mixture["modules"].items()},
        **({"files": rows} if rows else {}),
    }


def _files(mixture: Mapping[str, Any]) -> dict[str, str]:
    """Return the files that gates are made from, by what they are of."""
    found = {e["expert"]: e["rows"] for e in mixture["experts"] if e.get("rows")}
    tasks = mixture["gate"]["params"].get("tasks")
    return {**found, **({"tasks": tasks} if tasks else {})}
