"""What is taken down while a model runs, one kind of statistic a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergekit_lite.calibrate.collect._types import Collector
from mergekit_lite.calibrate.collect.gram import GramCollector
from mergekit_lite.calibrate.collect.hidden import HiddenCollector
from mergekit_lite.calibrate.collect.merging import MergingCollector
from mergekit_lite.calibrate.collect.outputs import OutputCollector
from mergekit_lite.calibrate.collect.rates import RateCollector
from mergekit_lite.calibrate.collect.router import RouterCollector
from mergekit_lite.calibrate.tokens import Samples
from mergekit_lite.calibrate.weights import Weights

Kind = (
    type[GramCollector]
    | type[RouterCollector]
    | type[HiddenCollector]
    | type[RateCollector]
    | type[OutputCollector]
    | type[MergingCollector]
)
KINDS: Mapping[str, Kind] = {
    "gram": GramCollector,
    "router": RouterCollector,
    "hidden": HiddenCollector,
    "rates": RateCollector,
    "outputs": OutputCollector,
    "merging": MergingCollector,
}
"""Every kind of statistic: name -> what collects it."""


def collectors(kinds: Sequence[str], samples: Samples, weights: Weights) -> list[Collector]:
    """Return what collects statistics of these kinds, in the order of `KINDS`."""
    return [make(samples, weights) for kind, make in KINDS.items() if kind in kinds]


__all__ = ["KINDS", "Collector", "collectors"]
