"""The rows of a model with fewer experts: copies under new numbers, and runs of stacked tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING, Protocol

from mergekit_lite.moe.fewer.stored import RoutedModule
from mergekit_lite.plan.frame import Frame, Target
from mergekit_lite.plan.runs import is_moved
from mergekit_lite.plan.types import Block, Job, Read, Step
from mergekit_lite.recipe.schema import BASE, Recipe

if TYPE_CHECKING:
    from mergekit_lite.plan.rows import Rows

_COPIED = Step("passthrough", {"source": None, "scale": 1.0, "weights": [1.0]})


class Kept(Protocol):
    """Which experts a result has.

    Attributes:
        modules: the routed modules by name.
        kept: the experts of each that stay, in order.
        without: beginnings of the names of all tensors that are left out.
    """

    @property
    def modules(self) -> Mapping[str, RoutedModule]: ...
    @property
    def kept(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def without(self) -> tuple[str, ...]: ...


def jobs(
    result: Kept, rows: Rows, recipe: Recipe, frame: Frame, part: str
) -> Iterator[tuple[str, Job]]:
    """Yield every row of the result, in the base's order, with the name that the base has for it.

    Args:
        result: which experts stay.
        rows: makes rows that take a tensor of the base.
        recipe: what is wanted.
        frame: the base's tensors.
        part: key of `moe` that says so, such as `prune`.
    """
    where = recipe.at("moe", part)
    alone: dict[str, str] = {}
    gone: set[str] = set()
    sliced: dict[str, Sequence[int]] = {}
    for root, own in result.modules.items():
        kept = result.kept[root]
        sliced |= dict.fromkeys((*own.stacked, *own.routers), kept)
        for expert, names in own.single.items():
            if expert not in kept:
                gone.update(names)
                continue
            start = len(f"{root}.experts.{expert}")
            number = kept.index(expert)
            alone |= {name: f"{root}.experts.{number}{name[start:]}" for name in names}
    for target in frame.targets:
        name = target.name
        if name in gone or name.startswith(result.without):
            continue
        job = rows.taken(target, BASE, where, f"`moe.{part}`")
        if job is None:
            continue
        if name in alone:
            yield name, replace(job, name=alone[name])
        elif name in sliced and len(sliced[name]) < _experts(target):
            yield name, _sliced(job, target, sliced[name])
        else:
            yield name, job


def _experts(target: Target) -> int:
    shape = target.info.shape
    return shape[1] if shape[0] == 1 and len(shape) == 2 else shape[0]


def _sliced(job: Job, target: Target, kept: Sequence[int]) -> Job:
    """Return the row of what is left of a tensor that has a part for each expert."""
    read, count = job.reads[0], _experts(target)
    each = prod(job.shape) // count
    blocks = tuple(_block(read, count, each, run) for run in _runs(kept))
    nbytes = read.nbytes // count * len(kept)
    whole = Read(
        read.source, read.name, nbytes=nbytes, made=read.made, held=read.held, blocks=blocks
    )
    flat = target.info.shape[0] != count
    shape = (1, len(kept)) if flat else (len(kept), *job.shape[1:])
    moved = is_moved(whole) and job.kind == "copy"
    return replace(
        job,
        shape=shape,
        kind="copy" if moved else "merge",
        reads=(whole,),
        steps=() if moved else (_COPIED,),
    )


def _block(read: Read, count: int, each: int, run: Sequence[int]) -> Block:
    return Block(read, (count, each), (run[0], 0), (len(run), each))


def _runs(kept: Sequence[int]) -> Iterator[list[int]]:
    """Yield runs of neighbours, which are read at once."""
    for _, group in groupby(enumerate(kept), key=lambda pair: pair[1] - pair[0]):
        yield [expert for _, expert in group]
