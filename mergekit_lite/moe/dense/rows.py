"""The rows of a dense model: each matrix the weighted mean of all experts', or that of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from mergekit_lite.moe.dense.settle import Densified
from mergekit_lite.moe.families import PARTS
from mergekit_lite.moe.fewer.stored import RoutedModule
from mergekit_lite.plan.frame import Frame, Target
from mergekit_lite.plan.runs import is_moved
from mergekit_lite.plan.types import Block, Job, Read, Step
from mergekit_lite.recipe.schema import BASE, Recipe

if TYPE_CHECKING:
    from mergekit_lite.plan.rows import Rows

_COPIED = Step("passthrough", {"source": None, "scale": 1.0, "weights": [1.0]})
_NAMES = {"gate": ("gate_proj", "w1"), "up": ("up_proj", "w3"), "down": ("down_proj", "w2")}


def jobs(dense: Densified, rows: Rows, recipe: Recipe, frame: Frame) -> Iterator[Job]:
    """Yield every row of the result; a layer's one network stands where its experts stood.

    Args:
        dense: what becomes of the base.
        rows: makes rows that take a tensor of the base.
        recipe: what is wanted.
        frame: the base's tensors.
    """
    where = recipe.at("moe", "dense")
    targets = {target.name: target for target in frame.targets}
    owner: dict[str, str] = {}
    for root, own in dense.modules.items():
        names = [name for listed in own.single.values() for name in listed]
        owner |= dict.fromkeys((*names, *own.stacked, *own.routers), root)
    taken = {
        name: rows.taken(target, BASE, where, "`moe.dense`") for name, target in targets.items()
    }
    done: set[str] = set()
    for name, job in taken.items():
        own_root = owner.get(name)
        if own_root is None:
            if job is not None:
                yield job
        elif own_root not in done:
            done.add(own_root)
            own = dense.modules[own_root]
            for part in PARTS:
                yield _part(own, part, dense.weights[own_root], taken, targets)


def _part(
    own: RoutedModule,
    part: str,
    weights: tuple[float, ...],
    taken: Mapping[str, Job | None],
    targets: Mapping[str, Target],
) -> Job:
    """Return the row of one matrix of a layer's one network."""
    found = {expert: _matrix(own, expert, part, taken) for expert in range(own.experts)}
    first, shape, _ = found[0]
    name = f"{own.root.rpartition('.')[0]}.mlp.{part}_proj.weight"
    counted = [expert for expert, weight in enumerate(weights) if weight > 0]
    reads = tuple(found[expert][2] for expert in counted)
    job = replace(first, name=name, shape=shape, reads=reads, base=None, kind="merge")
    if len(reads) > 1:
        listed = [float(weights[expert]) for expert in counted]
        return replace(job, steps=(Step("linear", {"normalize": True, "weights": listed}),))
    same = job.dtype == targets[found[counted[0]][0].name].info.dtype
    moved = same and is_moved(reads[0])
    return replace(job, kind="copy" if moved else "merge", steps=() if moved else (_COPIED,))


def _matrix(
    own: RoutedModule, expert: int, part: str, taken: Mapping[str, Job | None]
) -> tuple[Job, tuple[int, int], Read]:
    """Return the row that takes an expert's matrix, its shape, and how it is read."""
    for name in own.single.get(expert, ()):
        job = taken[name]
        if name.split(".")[-2] in _NAMES[part] and job is not None:
            return job, (job.shape[0], job.shape[1]), job.reads[0]
    fused = ("gate_up_proj", "input_linear") if part != "down" else ("down_proj", "output_linear")
    name = next(n for n in own.stacked if any(word in n for word in fused))
    job = taken[name]
    if job is None:
        raise KeyError(name)
    count, rows, columns = job.shape
    first = expert * rows
    if part != "down":
        rows //= 2
        first += rows if part == "up" else 0
    whole = job.reads[0]
    block = Block(whole, (prod(job.shape[:2]), columns), (first, 0), (rows, columns))
    read = Read(
        whole.source,
        whole.name,
        nbytes=whole.nbytes // count,
        made=whole.made,
        held=whole.held,
        blocks=(block,),
    )
    return job, (rows, columns), read
