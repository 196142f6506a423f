"""The rows of a model whose experts are merged: means of matrices, their neurons in one order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from mergekit_lite.moe.fewer.rows import jobs as fewer_jobs
from mergekit_lite.moe.merge.groups import Group
from mergekit_lite.moe.merge.made import order_name, refit_name, router_name
from mergekit_lite.moe.merge.mapped import mapped_name
from mergekit_lite.moe.merge.matrices import Held
from mergekit_lite.moe.merge.settle import Merging
from mergekit_lite.plan.frame import Frame
from mergekit_lite.plan.types import GATE, Block, Job, Order, Read, Step
from mergekit_lite.recipe.schema import BASE, Recipe

if TYPE_CHECKING:
    from mergekit_lite.plan.rows import Rows

_COPIED = Step("passthrough", {"source": None, "scale": 1.0, "weights": [1.0]})


class MergedRows:
    """Makes the rows of a model whose experts are merged.

    Args:
        merging: which experts become one.
        rows: makes rows that take a tensor of the base.
        recipe: what is wanted.
    """

    def __init__(self, merging: Merging, rows: Rows, recipe: Recipe) -> None:
        self.merging, self.rows, self.recipe = merging, rows, recipe
        self._base = rows.found[BASE]
        self._roots = {
            held.name: root for root, own in merging.matrices.items() for held in own.held
        }

    def jobs(self, frame: Frame) -> Iterator[Job]:
        """Yield every row of the result, in the base's order."""
        for job in self._jobs(frame):
            mapped = self.merging.merge.router == "map"
            yield replace(job, name=mapped_name(job.name, self._base)) if mapped else job

    def _jobs(self, frame: Frame) -> Iterator[Job]:
        alone: dict[str, tuple[str, Group, Held]] = {}
        stacked: dict[str, tuple[str, Held]] = {}
        routers: set[str] = set()
        targets = {target.name: target for target in frame.targets}
        for root, stored in self.merging.matrices.items():
            for held in stored.held:
                if stored.stacked:
                    stacked[held.name] = root, held
                    continue
                for group in self.merging.groups[root]:
                    alone[held.name.format(e=group.lead)] = root, group, held
            if self.merging.merge.router in ("frequency", "lse", "map"):
                routers.update(self.merging.modules[root].routers)
        for name, job in fewer_jobs(self.merging, self.rows, self.recipe, frame, "merge"):
            if name in alone:
                yield self._one(job, *alone[name])
            elif name in stacked and not self._all_moved(stacked[name][0]):
                yield self._stack(job, *stacked[name])
            elif name in routers and self.merging.merge.router == "map":
                whole = self.rows.taken(targets[name], BASE, self.recipe.at("moe", "merge"), "map")
                if whole is not None:
                    yield whole
            elif name in routers:
                made = Read(GATE, router_name(name), nbytes=4 * prod(job.shape))
                yield replace(job, kind="merge", reads=(made,), base=None, steps=(_COPIED,))
            else:
                yield job

    def _all_moved(self, root: str) -> bool:
        """Return whether every expert of the result is one of the base at its own place."""
        return all(group.members == (group.lead,) for group in self.merging.groups[root])

    def _one(self, job: Job, root: str, group: Group, held: Held) -> Job:
        """Return the row of a matrix that a group has."""
        if group.members == (group.lead,):
            return job
        whole = [self._base.read(held.name.format(e=member)) for member in group.members]
        if group.moved:
            return replace(job, reads=(whole[0],))
        if self._is_fitted(held, group):
            made = Read(GATE, refit_name(root, group.lead), nbytes=4 * prod(job.shape))
            return replace(job, kind="merge", reads=(made,), base=None, steps=(_COPIED,))
        reads = []
        for member, read in zip(group.members, whole, strict=True):
            order = self._order(order_name(root, member), held, member, group, 1)
            size = (held.rows, held.columns)
            block = Block(read, size, (0, 0), size, order=order)
            reads.append(read if order is None else _window(read, (block,), read.nbytes))
        mean = Step("linear", {"normalize": True, "weights": list(group.shares())})
        return replace(job, kind="merge", reads=tuple(reads), base=None, steps=(mean,))

    def _is_fitted(self, held: Held, group: Group) -> bool:
        down = held.part == "down" and held.leaf == "weight" and not group.moved
        return down and self.merging.merge.refit_down is not None

    def _order(
        self, name: str, held: Held, member: int, group: Group, experts: int
    ) -> Order | None:
        """Return how an expert's neurons are put in the order of the leading one's."""
        if member == group.lead or not held.axis or self.merging.merge.align == "none":
            return None
        return Order(name, held.axis, (experts * held.rows, held.columns))

    def _stack(self, job: Job, root: str, held: Held) -> Job:
        """Return the row of a tensor of all experts: a sum of inputs, in each of which a group has
        one of its experts, times its share."""
        groups, whole = self.merging.groups[root], self._base.read(held.name)
        count = self.merging.matrices[root].experts
        deepest = max(len(group.members) for group in groups)
        reads = tuple(
            _window(
                whole,
                tuple(self._slot(whole, held, group, slot, count) for group in groups),
                whole.nbytes // count * sum(slot < len(group.members) for group in groups),
            )
            for slot in range(deepest)
        )
        ones = [1.0] * deepest
        total = Step("linear", {"normalize": False, "weights": ones})
        return replace(job, kind="merge", reads=reads, base=None, steps=(total,))

    def _slot(self, whole: Read, held: Held, group: Group, slot: int, count: int) -> Block:
        size = (held.rows, held.columns)
        fitted = self._is_fitted(held, group)
        if fitted and slot == 0:
            made = Read(GATE, refit_name(self._roots[held.name], group.lead), nbytes=4 * prod(size))
            return Block(made, size, (0, 0), size)
        if fitted or slot >= len(group.members):
            # Times -1, so that it is -0.0, which leaves every number as it is, -0.0 too.
            return Block(Read("", "", zero=True), (0, held.columns), (0, 0), size, scale=-1.0)
        member, share = group.members[slot], group.shares()[slot]
        stored = (count * held.rows, held.columns)
        name = order_name("", member, held)
        order = self._order(name, held, member, group, count)
        if order is not None and held.axis == "rows":
            # Its numbers are those of rows in the tensor of all experts.
            return Block(whole, size, (0, 0), size, share, order)
        return Block(whole, stored, (member * held.rows, 0), size, share, order)


def _window(whole: Read, blocks: tuple[Block, ...], nbytes: int) -> Read:
    return Read(
        whole.source,
        whole.name,
        nbytes=nbytes,
        made=whole.made,
        held=whole.held,
        blocks=blocks,
    )
