"""Inputs that are runs of stored entries, whose bytes can be moved without being looked at."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from mergekit_lite.plan.types import Block, Read


class Run(NamedTuple):
    """So many entries of a stored tensor from entry `first` on."""

    source: str
    name: str
    first: int
    entries: int


def runs_of(read: Read, size: int) -> Iterator[Run]:
    """Yield the runs that an input is made of, in order.

    Args:
        read: an input for which `is_moved` holds.
        size: number of its entries.
    """
    if read.blocks:
        for block in read.blocks:
            yield from _within(block)
    elif read.pieces:
        yield from (Run(read.source, piece.name, piece.first, piece.count) for piece in read.pieces)
    else:
        yield Run(read.source, read.name, 0, size)


def _within(block: Block) -> Iterator[Run]:
    """Yield the runs of a window of whole rows."""
    skip, left = block.first[0] * block.stored[1], prod(block.shape)
    for run in runs_of(block.read, prod(block.stored)):
        if skip >= run.entries:
            skip -= run.entries
            continue
        count = min(run.entries - skip, left)
        if count:
            yield run._replace(first=run.first + skip, entries=count)
        left, skip = left - count, 0


def is_moved(read: Read) -> bool:
    """Return whether an input is runs of stored entries: nothing of it is computed or made up."""
    if read.blocks:
        stacked = not read.beside
        return stacked and all(is_moved(each.read) and _is_rows(each) for each in read.blocks)
    as_stored = not (read.made or read.gather or read.turn)
    return bool(read.name) and as_stored and not (read.zero or read.lora)


def _is_rows(block: Block) -> bool:
    """Return whether a window is whole rows of its matrix, and nothing beyond it."""
    rows, columns = block.stored
    whole = block.first[1] == 0 and block.shape[1] == columns and block.scale == 1.0
    whole = whole and block.order is None
    return whole and block.first[0] + block.shape[0] <= rows
