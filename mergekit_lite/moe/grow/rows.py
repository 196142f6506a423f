"""The rows of a routed model with added experts: copies, and longer tensors of all experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from mergekit_lite.checkpoint import TensorInfo, role_of
from mergekit_lite.moe.grow.donors import expert_size
from mergekit_lite.moe.grow.settle import Added, Growth
from mergekit_lite.moe.grow.stored import Module
from mergekit_lite.plan.frame import Frame, Target
from mergekit_lite.plan.inputs import View
from mergekit_lite.plan.runs import is_moved
from mergekit_lite.plan.types import GATE, Block, Job, Read, Step
from mergekit_lite.recipe.schema import BASE, Recipe

if TYPE_CHECKING:
    from mergekit_lite.plan.rows import Rows

_COPIED = Step("passthrough", {"source": None, "scale": 1.0, "weights": [1.0]})
NEVER = "never"
"""In the file of gates: the bias of an expert that no token chooses."""


class GrownRows:
    """Makes the rows of a routed model with added experts.

    Args:
        growth: what is added.
        rows: makes rows that take a tensor of one input.
        recipe: what is wanted.
        found: the base and the models that lend experts.
    """

    def __init__(
        self, growth: Growth, rows: Rows, recipe: Recipe, found: Mapping[str, View]
    ) -> None:
        self.growth, self.rows, self.recipe, self.found = growth, rows, recipe, found

    def jobs(self, frame: Frame) -> Iterator[Job]:
        """Yield every row; an added expert stands behind the last one of the base."""
        modules = self.growth.modules.values()
        routers = {name: own for own in modules for name in own.routers}
        stacked = {name: own for own in modules if own.stacked for name in own.tensors.values()}
        last = {
            name: (own, place)
            for own in modules
            if not own.stacked
            for place, name in own.names(own.experts - 1).items()
        }
        for target in frame.targets:
            job = self.rows.taken(target, BASE, self.recipe.at("moe", "grow"), "`moe.grow`")
            if job is None:
                continue
            if target.name in routers:
                yield self._longer(job, self._router(routers[target.name], target, job))
            elif target.name in stacked:
                yield self._longer(job, self._stack(stacked[target.name], target))
            else:
                yield job
            if target.name in last:
                yield from self._alone(*last[target.name], target)

    def _longer(self, job: Job, more: Sequence[Block]) -> Job:
        """Return a row of a tensor that has a part for each expert, with further parts."""
        count, first = self.growth.before, job.reads[0]
        each = prod(job.shape) // count
        blocks = (Block(first, (count, each), (0, 0), (count, each)), *more)
        read = Read(
            first.source,
            first.name,
            nbytes=sum(block.read.nbytes for block in blocks),
            made=any(block.read.made for block in blocks),
            held=sum(block.read.held for block in blocks),
            blocks=blocks,
        )
        total = count + len(self.growth.added)
        flat = job.shape[0] != count
        dtypes = {self._dtype(block.read) for block in blocks if not block.read.zero}
        moved = is_moved(read) and job.kind == "copy" and dtypes == {job.dtype}
        return replace(
            job,
            shape=(1, total) if flat else (total, *job.shape[1:]),
            kind="copy" if moved else "merge",
            reads=(read,),
            steps=() if moved else (_COPIED,),
        )

    def _dtype(self, read: Read) -> str:
        if read.source == GATE:
            return "F32"
        tensors = self.found[read.source].model.header.tensors
        return next((info.dtype for info in tensors.values() if info.name == read.name), "")

    def _router(self, module: Module, target: Target, job: Job) -> list[Block]:
        """Return the rows, or the biases, that added experts have in a router."""
        each = prod(job.shape) // module.experts
        return [
            self._silent(module, target, one, each)
            if one.silent
            else self._part(one, module, self._twin(module, target.name, one), each)
            for one in self.growth.added
        ]

    def _silent(self, module: Module, target: Target, one: Added, each: int) -> Block:
        """Return what keeps tokens from an expert; a copy keeps the row of what it copies."""
        if target.name == module.bias:
            return Block(Read(GATE, NEVER, nbytes=4), (1, each), (0, 0), (1, each))
        if one.number is not None:
            return self._part(one, module, self._twin(module, target.name, one), each)
        return Block(Read("", "", zero=True), (0, each), (0, 0), (1, each))

    def _twin(self, module: Module, name: str, one: Added) -> str:
        """Return what a donor calls the tensor that the base calls so."""
        other = self.growth.donors[one.source][module.root]
        if name in module.routers:
            return other.routers[module.routers.index(name)]
        place = next(place for place, own in module.tensors.items() if own == name)
        return other.tensors[place]

    def _part(self, one: Added, module: Module, name: str, each: int) -> Block:
        """Return the part of one expert in a donor's tensor of all its experts."""
        count = self.growth.donors[one.source][module.root].experts
        read = self.found[one.source].read(name)
        return Block(read, (count, each), (one.number or 0, 0), (1, each))

    def _stack(self, module: Module, target: Target) -> list[Block]:
        """Return the parts that added experts have in a tensor of all experts."""
        each = prod(target.info.shape) // module.experts
        blocks: list[Block] = []
        for one in self.growth.added:
            if one.number is not None:
                twin = self._twin(module, target.name, one)
                blocks.append(self._part(one, module, twin, each))
            else:
                place = next(p for p, own in module.tensors.items() if own == target.name)
                blocks += self._dense_blocks(one, module, place[1])
        return blocks

    def _dense_blocks(self, one: Added, module: Module, projection: str) -> Iterator[Block]:
        hidden, width = expert_size(module, self.found[BASE].tensors)
        whole = {"gate_up_proj": ("gate", "up")}
        for part in whole.get(projection, (projection.removesuffix("_proj"),)):
            name = self.growth.dense[one.source].names[module.layer][part]
            shape = self.found[one.source].tensors[name].shape
            size = (hidden, width) if part == "down" else (width, hidden)
            yield Block(self.found[one.source].read(name), (shape[0], shape[1]), (0, 0), size)

    def _alone(self, module: Module, place: tuple[str, str], target: Target) -> Iterator[Job]:
        """Yield the same matrix of every added expert, under its new number."""
        number = module.experts - 1
        for index, one in enumerate(self.growth.added):
            new = target.name.replace(f".experts.{number}.", f".experts.{number + 1 + index}.", 1)
            if one.number is not None:
                source = self.growth.donors[one.source][module.root].names(one.number)[place]
            else:
                part = place[0].removesuffix("_proj")
                source = self.growth.dense[one.source].names[module.layer][part]
            job = self._taken(one, source, target)
            if job is not None:
                yield replace(self._padded(job, target.info.shape), name=new, layer=module.layer)

    def _taken(self, one: Added, name: str, target: Target) -> Job | None:
        shape = self.found[one.source].tensors[name].shape
        info = TensorInfo(name, target.info.dtype, shape, "", 0)
        wanted = Target(info, target.layer, role_of(name))
        return self.rows.taken(wanted, one.source, self.recipe.at("moe", "grow"), "`moe.grow`")

    @staticmethod
    def _padded(job: Job, shape: tuple[int, ...]) -> Job:
        if job.shape == shape:
            return job
        first = job.reads[0]
        block = Block(first, (job.shape[0], job.shape[1]), (0, 0), (shape[0], shape[1]))
        read = Read(first.source, first.name, nbytes=first.nbytes, made=first.made,
                    held=first.held, blocks=(block,))  # fmt: skip
        return replace(job, kind="merge", shape=shape, reads=(read,), steps=(_COPIED,))
