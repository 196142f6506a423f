"""How a tensor of the base's routed experts is read from an expert that stores them otherwise.

The dimensions of an expert's matrices have letters: `p` gate or up, `i` outputs, `j` inputs. A
layout is an order of them, and what is read is brought from one order into the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from mergekit_lite.checkpoint import DTYPE_BYTES, TensorInfo
from mergekit_lite.plan.routed.layers import ALL, Form, RoutedLayer, Slot
from mergekit_lite.plan.types import Piece, Read, Turn

Made = tuple[TensorInfo, Read]
Run = tuple[Piece, TensorInfo]
Sizes = Mapping[str, int]

_BOTH = ("gate_proj", "up_proj")
_HALVES = {"gate_up_proj": _BOTH}
_APART = Form()


@dataclass(frozen=True)
class Sides:
    """The same layer of two models.

    Attributes:
        wanted, own: the base's layer and the expert's.
        base, mine: the tensors of both models.
        source: the expert's name.
    """

    wanted: RoutedLayer
    own: RoutedLayer
    base: Mapping[str, TensorInfo]
    mine: Mapping[str, TensorInfo]
    source: str

    def read_as(self, slot: Slot) -> Made | None:
        """Return how the expert gives one tensor of the base; None where sizes do not fit."""
        return self._fused(slot) if slot[0] == ALL else self._single(slot)

    def _fused(self, slot: Slot) -> Made | None:
        """Return all experts of a layer as one tensor."""
        _, part, leaf = slot
        info = self.base[self.wanted.tensors[slot]]
        dims = dimensions(part, leaf, self.wanted.form)
        sizes = sizes_of(dims, info.shape[1:])
        found = self._stored(part, leaf)
        if sizes is None or found is None or found[0] != (sizes, info.shape[0]):
            return None
        _, order, runs = found
        return self._made(info, runs, _turn(sizes, order, "".join(dims), 0))

    def _stored(self, part: str, leaf: str) -> tuple[tuple[Sizes, int], str, list[Run]] | None:
        """Return what the expert has for a fused tensor: sizes, order of a block, and entries."""
        if (ALL, part, leaf) in self.own.tensors:
            whole = self.mine[self.own.tensors[ALL, part, leaf]]
            dims = dimensions(part, leaf, self.own.form)
            sizes = sizes_of(dims, whole.shape[1:])
            if sizes is None:
                return None
            run = Piece(whole.name, 0, whole.size), whole
            return (sizes, whole.shape[0]), "".join(dims), [run]
        halves = _HALVES.get(part, (part,))
        names = [
            self.own.tensors.get((expert, half, leaf))
            for expert in range(self.own.experts)
            for half in halves
        ]
        infos = [self.mine[name] for name in names if name is not None]
        if not infos or len(infos) < len(names) or len({info.shape for info in infos}) > 1:
            return None
        dims = dimensions(halves[0], leaf, _APART)
        sizes = sizes_of(dims, infos[0].shape)
        if sizes is None:
            return None
        if len(halves) > 1:
            sizes = {"p": len(halves), **sizes}
        runs = [(Piece(info.name, 0, info.size), info) for info in infos]
        return (sizes, self.own.experts), "".join(sizes), runs

    def _single(self, slot: Slot) -> Made | None:
        """Return one projection of one expert."""
        expert, part, leaf = slot
        info = self.base[self.wanted.tensors[slot]]
        holder = self.own.holder(part, leaf)
        if holder is None:
            alone = self.own.tensors.get(slot)
            if alone is None or self.mine[alone].shape != info.shape:
                return None
            if self.own.experts != self.wanted.experts:
                return None
            whole = self.mine[alone]
            return self._made(info, [(Piece(whole.name, 0, whole.size), whole)], None)
        whole = self.mine[self.own.tensors[holder]]
        dims = dimensions(holder[1], leaf, self.own.form)
        sizes = sizes_of(dims, whole.shape[1:])
        if sizes is None or whole.shape[0] != self.wanted.experts:
            return None
        if "p" in sizes and not all((expert, h, leaf) in self.wanted.tensors for h in _BOTH):
            return None
        if info.shape != tuple(sizes[letter] for letter in "ij" if letter in sizes):
            return None
        first = info.size if "p" in sizes and part == "up_proj" else 0
        order, wanted = "".join(dims), "".join(letter for letter in "pij" if letter in sizes)
        turn = _turn(sizes, order, wanted, first)
        block = prod(sizes.values())
        if turn is None:
            run = Piece(whole.name, expert * block + first, info.size)
        else:
            run = Piece(whole.name, expert * block, block)
        return self._made(info, [(run, whole)], turn)

    def _made(self, info: TensorInfo, runs: Sequence[Run], turn: Turn | None) -> Made:
        like = runs[0][1]
        made = {stored.name: stored for _, stored in runs if stored.is_made}
        held = sum(one.held for one in made.values())
        if turn is not None:
            width = max(DTYPE_BYTES[stored.loaded] for _, stored in runs)
            held += 2 * prod(turn.shape) * width  # as it is stored, and as it is wanted
        result = TensorInfo(info.name, like.dtype, info.shape, like.file, like.start)
        read = Read(
            self.source,
            runs[0][0].name,
            nbytes=self._nbytes(runs),
            made=bool(made),
            held=held,
            pieces=tuple(piece for piece, _ in runs),
            turn=turn,
        )
        return result, read

    def _nbytes(self, runs: Sequence[Run]) -> int:
        return sum(piece.count * DTYPE_BYTES[info.dtype] for piece, info in runs)


def dimensions(part: str, leaf: str, form: Form) -> tuple[str, ...]:
    """Return the letters of each stored dimension of one expert."""
    outputs = "i"
    if part in _HALVES:
        outputs = "ip" if form.alternating else "pi"
    if leaf == "bias":
        return (outputs,)
    return ("j", outputs) if form.transposed else (outputs, "j")


def sizes_of(dims: Sequence[str], shape: Sequence[int]) -> Sizes | None:
    """Return the size of each letter; None for a shape that is no such tensor's."""
    if len(dims) != len(shape):
        return None
    found: dict[str, int] = {}
    for letters, size in zip(dims, shape, strict=True):
        if "p" not in letters:
            found[letters] = size
        elif size % 2:
            return None
        else:
            found |= {"p": 2, "i": size // 2}
    return found


def _turn(sizes: Sizes, have: str, want: str, first: int) -> Turn | None:
    """Return what leads from one order of a block's dimensions to another, if anything."""
    if have == want:
        return None
    shape = tuple(sizes[letter] for letter in have)
    return Turn(shape, tuple(have.index(letter) for letter in want), first)
