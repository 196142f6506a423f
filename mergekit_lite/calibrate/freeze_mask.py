"""What stays as it is while some experts of a routed model are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit_lite.calibrate.run import model_digest
from mergekit_lite.calibrate.store import read_record
from mergekit_lite.errors import DataError
from mergekit_lite.moe.fewer.stored import RoutedModule, modules_of
from mergekit_lite.sources import Model

FREEZE_FILE = "freeze_mask.json"


def freeze_mask(model: Model, trained: Mapping[str, Sequence[int]], stats: Path) -> dict[str, Any]:
    """Return the tensors that are not to be trained, and the experts of those that hold many.

    Args:
        model: a routed model.
        trained: layer, as text, -> the experts that are to be trained.
        stats: folder of the statistics that they were chosen by.

    Returns:
        `frozen` lists tensors that stay whole; `frozen_experts` has, for each tensor that holds all
        experts of a layer, the numbers of those that stay.

    Raises:
        DataError: the statistics are of another model.
    """
    measured = read_record(stats).get("model_sha256")
    if measured is not None and measured != model_digest(model):
        raise DataError(
            f"`{stats}` was measured of another model than `{model.reference}`",
            "--model",
            "give the model that was measured, or measure this one",
        )
    modules = {
        own.layer: own
        for own in modules_of(model.header.tensors, model.config or {}).values()
        if own.layer is not None and not own.drafts
    }
    free: set[str] = set()
    stays: dict[str, list[int]] = {}
    for layer, experts in trained.items():
        own = modules.get(int(layer))
        if own is None or max(experts, default=-1) >= own.experts:
            raise DataError(
                f"`{model.reference}` has no {_wanted(own, experts)} in layer {layer}",
                "--model",
                f"`{stats}` was measured of another model",
            )
        free.update(name for expert in experts for name in own.single.get(expert, ()))
        for name in own.stacked:
            stays[name] = [number for number in range(own.experts) if number not in experts]
    whole = [name for name in model.header.tensors if name not in free and name not in stays]
    return {"frozen": whole, "frozen_experts": stays}


def _wanted(own: RoutedModule | None, experts: Sequence[int]) -> str:
    return "experts" if own is None else f"expert {max(experts)}"
