"""The statistics of one row that the torch chain waits for, swept tile by tile."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from mergekit_lite.engine.collect import (
    Collector,
    EachCollector,
    OrderCollector,
    TotalsCollector,
)
from mergekit_lite.engine.known import missing
from mergekit_lite.ops._statistics import Order, Totals

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit_lite.engine.torch_row import Asking, Link, Tile, TorchRow


def find_statistics(chain: TorchRow, stop: threading.Event, until: int | None = None) -> None:
    """Sweep a row until no step waits for a statistic of the row itself.

    Steps of one depth share a sweep.

    Args:
        chain: whose links are given their answers.
        stop: set when the run has to end.
        until: number of the stage that is not looked at any more.
    """
    for asking in chain.stages()[:until]:
        for index in range(max((len(ask.link.spec.statistics) for ask in asking), default=0)):
            _collect(chain, asking, index, stop)


def asked_of(chain: TorchRow, ask: Asking, index: int, tile: Tile) -> list[Tensor]:
    """Return what one of a step's statistics is taken of, in a tile."""
    link = ask.link
    earlier = tuple(link.found.get(number) for number in range(index))
    needs = link.spec.statistics[index]
    found: list[Tensor] = needs.of(
        ask.values(tile), chain.at(tile, link), link.stage.params, earlier
    )
    return found


def _collect(chain: TorchRow, asking: Sequence[Asking], index: int, stop: threading.Event) -> None:
    """Fill in one of the answers of each of the steps."""
    collectors = [
        (ask, collector)
        for ask in asking
        if (collector := _collector(chain, ask.link, index)) is not None
    ]
    pending = collectors
    while pending:
        for tile in chain.tiles(stop):
            for ask, collector in pending:
                collector.add(asked_of(chain, ask, index, tile), tile.first)
        pending = [(ask, collector) for ask, collector in pending if collector.next()]
    for ask, collector in collectors:
        ask.link.found[index] = collector.answer()


def _collector(chain: TorchRow, link: Link, index: int) -> Collector | None:
    size, params = chain.row.size, link.stage.params
    if index >= len(link.spec.statistics) or index in link.found or size == 0:
        return None
    needs = link.spec.statistics[index]
    if needs.of_model(params):
        raise missing(chain.row.job.name, link.spec.name)
    if not needs.asked(params, size):
        return None
    if isinstance(needs, Order):
        make = partial(
            OrderCollector,
            needs.ranks(params, size),
            size,
            keep_ties=needs.keeps_ties(params),
            signed=needs.signed,
            share=needs.share_for(params),
        )
        return EachCollector(make) if needs.each else make()
    return TotalsCollector(needs) if isinstance(needs, Totals) else None
