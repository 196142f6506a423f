"""How far tuning has moved each expert's row of the router: those that it left alone learnt
nothing of the task."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mergekit_lite.errors import DataError
from mergekit_lite.moe.fewer.statistics import Numbers, weight
from mergekit_lite.moe.fewer.stored import RoutedModule
from mergekit_lite.plan.inputs import View
from mergekit_lite.recipe.schema import BASE, Prune


def change_scores(
    prune: Prune, found: Mapping[str, View], modules: Mapping[str, RoutedModule]
) -> dict[str, Numbers]:
    """Return a score for each expert from its router row now (r) and before tuning (s).

    `router_norm` is |r| - |s|, `router_change` |r - s|.

    Raises:
        DataError: a module has no matrix of rows, or the model before tuning has another.
    """
    tuned, before = found[BASE], found[prune.pretrained or ""]
    before.used += 1
    result = {}
    for root, own in modules.items():
        matrices = [name for name in own.routers if len(tuned.tensors[name].shape) == 2]
        matrices = [name for name in matrices if tuned.tensors[name].shape[0] == own.experts]
        if len(matrices) != 1:
            raise DataError(f"`{root}` has no router with a row for each expert")
        name = matrices[0]
        shape = before.tensors[name].shape if name in before.tensors else None
        if shape != tuned.tensors[name].shape:
            raise DataError(
                f"`{prune.pretrained}` has no router like `{name}`",
                hint="name the model that the base was tuned from",
            )
        now = weight(tuned.model, tuned.model.header, name)
        then = weight(before.model, before.model.header, name)
        if prune.method == "router_change":
            result[root] = np.asarray(np.linalg.norm(now - then, axis=1))
        else:
            result[root] = np.linalg.norm(now, axis=1) - np.linalg.norm(then, axis=1)
    return result
