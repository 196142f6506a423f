"""Where each neuron of a carved layer stands, for rows that put its slices together again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mergekit_lite.errors import DataError
from mergekit_lite.plan.types import GATE, Plan
from mergekit_lite.sources import Model, resolve


def with_orders(plan: Plan, models: Mapping[str, Model], folder: Path) -> dict[str, Model]:
    """Return the models with the orders of a carved base among them.

    Args:
        plan: of the dense model that a carved one was.
        models: its inputs, opened.
        folder: where a file may be made.

    Raises:
        DataError: the base's file of orders is another than when the plan was made.
    """
    import numpy as np

    from mergekit_lite.moe.dense.carved import NEURONS_FILE, read_carving
    from mergekit_lite.moe.gate_file import GATE_FILE, write_tensors

    facts, base = plan.moe["dense"], models["base"]
    carving = read_carving(base.root, base.config or {})
    if carving.sha256 != facts["neurons_sha256"]:
        hint = "plan again"
        raise DataError("changed since the plan was made", str(base.root / NEURONS_FILE), hint)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / GATE_FILE
    unfinished = path.with_suffix(".partial")
    orders = {
        name: np.array(carving.places[layer], np.float32) for name, layer in facts["orders"].items()
    }
    write_tensors(unfinished, orders, {})
    unfinished.replace(path)
    made = resolve(str(path), relative_to=folder)
    return {**models, GATE: replace(made, reference=GATE)}
