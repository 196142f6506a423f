"""The rows of a routed model whose biases of choice change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from mergekit_lite.moe.switch.settle import Switched
from mergekit_lite.plan.frame import Frame
from mergekit_lite.plan.types import GATE, Block, Job, Read, Step
from mergekit_lite.recipe.schema import BASE, Recipe

if TYPE_CHECKING:
    from mergekit_lite.plan.rows import Rows

_COPIED = Step("passthrough", {"source": None, "scale": 1.0, "weights": [1.0]})


def jobs(switched: Switched, rows: Rows, recipe: Recipe, frame: Frame) -> Iterator[Job]:
    """Yield every row; all but the changed biases are copies."""
    for target in frame.targets:
        job = rows.taken(target, BASE, recipe.at("moe", "bias"), "`moe.bias`")
        if job is not None:
            chosen = switched.biases.get(target.name)
            yield job if chosen is None else _changed(job, chosen)


def _changed(job: Job, chosen: Mapping[int, str]) -> Job:
    """Return the row of a bias in which some entries are constants."""
    first, experts = job.reads[0], prod(job.shape)
    blocks = [_entry(first, experts, number, chosen.get(number)) for number in range(experts)]
    read = Read(
        first.source, first.name, nbytes=first.nbytes, made=first.made, held=first.held,
        blocks=_merged(blocks),
    )  # fmt: skip
    return replace(job, kind="merge", reads=(read,), base=None, steps=(_COPIED,))


def _entry(first: Read, experts: int, number: int, word: str | None) -> Block:
    if word is not None:
        return Block(Read(GATE, word, nbytes=4), (1, 1), (0, 0), (1, 1))
    return Block(first, (experts, 1), (number, 0), (1, 1))


def _merged(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Return entries of the base that follow each other as one window."""
    found: list[Block] = []
    for block in blocks:
        last = found[-1] if found else None
        if last is not None and last.read == block.read and block.read.source != GATE:
            found[-1] = replace(last, shape=(last.shape[0] + 1, 1))
        else:
            found.append(block)
    return tuple(found)
