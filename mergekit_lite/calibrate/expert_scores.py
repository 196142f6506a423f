"""Which experts of a routed model matter for texts: scores as ESFT has them, and differences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.calibrate.store import read_record
from mergekit_lite.errors import DataError, RecipeError, SourceError, nearest
from mergekit_lite.moe.fewer.statistics import layer_statistics

Numbers = NDArray[np.float64]
By = Literal["gate", "token"]
PARTS: Mapping[By, float] = {"gate": 0.1, "token": 0.2}
"""Which part of a layer's scores ESFT trains, by the score."""
_LAYER = re.compile(r"layer-(\d+)\.safetensors")


def expert_scores(stats: Path, by: By = "token") -> dict[int, Numbers]:
    """Return layer -> the score of each expert; those of a layer add up to 1.

    Args:
        stats: folder that `calibrate --collect rates` has made.
        by: `token`, the part of a layer's choices that fall on the expert, or `gate`, the part of
            the weights that it is given.

    Raises:
        SourceError: the folder holds no such statistics.
        DataError: a layer's experts were never chosen.
    """
    found = {}
    for layer, sums in _layers(stats).items():
        own = sums["count"].sum(0) if by == "token" else sums["weight"]
        found[layer] = _shares(own, f"layer {layer}", stats)
    return found


def fewest(scores: Numbers, part: float) -> tuple[int, ...]:
    """Return the experts with the largest scores, as few as reach this part of all, in order.

    Of equal scores the first expert comes first (ESFT, arXiv 2407.01906, within each layer).
    """
    order = np.argsort(-scores, kind="stable")
    reached = np.cumsum(scores[order]) >= part - 1e-12
    count = int(reached.argmax()) + 1 if reached.any() else len(order)
    return tuple(sorted(order[:count].tolist()))


def esft_config(stats: Path, by: By = "token", part: float | None = None) -> dict[str, Any]:
    """Return what ESFT's training reads: the experts of each layer that it is to train.

    Args:
        stats: folder that `calibrate --collect rates` has made.
        by: see `expert_scores`.
        part: of a layer's scores; by default 0.1 of gates, 0.2 of tokens.
    """
    share = PARTS[by] if part is None else part
    scores = expert_scores(stats, by)
    return {
        "experts": {str(layer): list(fewest(own, share)) for layer, own in scores.items()},
        "shared_experts": False,
        "non_expert_modules": False,
    }


def differences(stats: Path, of: str, against: str) -> list[tuple[float, int, int]]:
    """Return (difference, layer, expert): how much more of one domain's choices fall on an expert.

    A difference of shares of the choices in a layer, between -1 and 1; the largest first.

    Args:
        stats: folder that `calibrate --collect rates` has made of texts of both domains.
        of: a domain of them.
        against: the domain that it is compared with.

    Raises:
        RecipeError: the statistics have no such domain.
    """
    domains = read_record(stats)["domains"]
    for name in (of, against):
        if name not in domains:
            hint = f"{nearest(name, domains)} there are {', '.join(domains)}".strip()
            raise RecipeError(f"the statistics have no domain `{name}`", str(stats), hint)
    rows = domains.index(of), domains.index(against)
    found = []
    for layer, sums in _layers(stats).items():
        first, second = (
            _shares(sums["count"][row], f"layer {layer} for `{domains[row]}`", stats)
            for row in rows
        )
        found += [(float(d), layer, expert) for expert, d in enumerate(first - second)]
    return sorted(found, key=lambda one: (-one[0], one[1:]))


def _shares(sums: Numbers, what: str, stats: Path) -> Numbers:
    total = float(sums.sum())
    if not total > 0:
        raise DataError(f"no expert of {what} was ever chosen", str(stats), "measure again")
    return sums / total


def _layers(stats: Path) -> dict[int, Mapping[str, Numbers]]:
    """Return what was counted in each routed layer."""
    read_record(stats)
    names = [_LAYER.fullmatch(path.name) for path in sorted((stats / "rates").glob("layer-*"))]
    found: dict[int, Mapping[str, Numbers]] = {}
    for match in names:
        if match and (sums := layer_statistics(stats, "rates", int(match[1]), ("count", "weight"))):
            found[int(match[1])] = sums
    if not found:
        raise SourceError(
            f"`{stats}` does not say which experts are chosen",
            hint="measure a routed model with `mergekit-lite calibrate --collect rates`",
        )
    return found
