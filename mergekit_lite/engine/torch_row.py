"""Runs one row through the torch chain, on the CPU or a GPU.

It serves every op: those of third parties, those that need a whole matrix, and all of them when
the fused kernels are turned off. Element and row ops go tile by tile; others take the tensor whole.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergekit_lite.checkpoint import role_of
from mergekit_lite.engine.lanes import Lane
from mergekit_lite.engine.row import Row, Write
from mergekit_lite.engine.torch_statistics import find_statistics
from mergekit_lite.errors import DataError, Interrupted
from mergekit_lite.ops import OpSpec, get
from mergekit_lite.ops._chain import (
    Beside,
    Stage,
    answer_from,
    apply_combine,
    apply_transform,
    enter,
    finish,
    placed,
    split,
)
from mergekit_lite.ops._place import Place
from mergekit_lite.ops._statistics import Answer

DTYPES: Mapping[str, torch.dtype] = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


_PIECE = 1 << 17
"""Entries of a whole tensor that are decoded, compared and rounded at a time, in the cache."""


@dataclass
class Link:
    """One step of the row's chain, ready to be applied."""

    spec: OpSpec
    stage: Stage
    found: dict[int, Answer] = field(default_factory=dict)  # by which of the op's statistics
    calibration: Any = None

    @property
    def answer(self) -> Answer:
        """What the op is handed of its statistics."""
        each = tuple(self.found.get(index) for index in range(len(self.spec.statistics)))
        return answer_from(self.spec, each)


@dataclass
class Tile:
    """A tile of every input on the device, in fp32."""

    first: int
    base: Tensor | None
    inputs: list[Tensor]


@dataclass
class Asking:
    """A step that may ask for statistics, and how its input is found in a tile."""

    at: int
    link: Link
    values: Callable[[Tile], list[Tensor]]


class TorchRow:
    """A row's chain in torch.

    Args:
        row: the inputs.
        lane: the way to the device.
        seed: of the recipe.
        layers: layers of the model.
        known: answers of whole-model statistics by (position, expert), and then by which of the
            op's statistics they are.
        calibration: tensors of statistic files by position of the step; a list for a combine.
    """

    def __init__(
        self,
        row: Row,
        lane: Lane,
        *,
        seed: int,
        layers: int,
        known: Mapping[tuple[int, str], Mapping[int, Answer]],
        calibration: Mapping[int, Any],
    ) -> None:
        self.row, self.lane = row, lane
        job = row.job
        self.place = Place(
            name=job.name,
            size=row.size,
            layer=job.layer,
            layers=layers,
            role=role_of(job.name),
        )
        self.seed = seed
        before, middle, after = split(job.steps)
        self.links = links = [self._link(at, known, calibration) for at in range(len(job.steps))]
        self.names = [read.source for read in job.reads]
        self.before = {
            name: [links[at] for at in before if job.steps[at].expert in ("", name)]
            for name in self.names
        }
        self.combine, self.after = links[middle], [links[at] for at in after]
        self.space = self.combine.spec.space_for(self.combine.stage.params)
        reaches = {link.spec.reach_for(link.stage.params) for link in links}
        self.rows = "row" in reaches
        self.whole = bool(reaches - {"element", "row"})
        # Counted on the device and fetched once a sweep, so that no tile waits for the host.
        with lane.working():
            self.squares = torch.zeros(len(row.slots), dtype=torch.float64, device=lane.device)
            self.bad = torch.zeros(len(row.bad), dtype=torch.int64, device=lane.device)

    def _link(
        self,
        at: int,
        known: Mapping[tuple[int, str], Mapping[int, Answer]],
        calibration: Mapping[int, Any],
    ) -> Link:
        step = self.row.job.steps[at]
        spec = get(step.op)
        params = spec.params_for({**spec.defaults(), **step.params}, self.row.job.shape)
        stage = Stage(step.op, params, step.expert)
        return Link(spec, stage, dict(known.get((at, step.expert), {})), calibration.get(at))

    def stages(self) -> list[list[Asking]]:
        """Return the steps in the chain's order; what works on one depth stands together."""
        _, middle, after = split(self.row.job.steps)
        links = {id(link): at for at, link in enumerate(self.links)}
        found = []
        for position in range(max(map(len, self.before.values()), default=0)):
            asking = []
            for e, name in enumerate(self.names):
                if position < len(self.before[name]):
                    link = self.before[name][position]
                    values = partial(self._one_transformed, expert=e, steps=position)
                    asking.append(Asking(links[id(link)], link, values))
            found.append(asking)
        found.append([Asking(middle, self.combine, self._combine_input)])
        for position, (at, link) in enumerate(zip(after, self.after, strict=True)):
            values = partial(self._post_input, link=link, posts=position)
            found.append([Asking(at, link, values)])
        return found

    def _one_transformed(self, tile: Tile, expert: int, steps: int) -> list[Tensor]:
        return [self.transformed(tile, expert, steps)]

    def _all_transformed(self, tile: Tile) -> list[Tensor]:
        return [self.transformed(tile, e) for e in range(len(self.names))]

    def _combine_input(self, tile: Tile) -> list[Tensor]:
        """Return a combine's inputs, and what its statistic files hold of them."""
        inputs = self._all_transformed(tile)
        part = self._part(self.combine, tile, inputs[0])
        return [*inputs, *(part if isinstance(part, list) else [])]

    def _post_input(self, tile: Tile, link: Link, posts: int) -> list[Tensor]:
        """Return a post's input, and the raw deltas behind it where the op asks for them."""
        raw = tile.inputs if "deltas" in link.spec.specials else []
        return [self.merged(tile, posts), *raw]

    def tiles(self, stop: threading.Event) -> Iterator[Tile]:
        """Yield every tile, reading the next one into the other side of the host memory."""
        size = max(self.row.size, 1) if self.whole else self.row.tile
        with self.lane.working():
            self.squares.zero_()
            self.bad.zero_()
        for number, first in enumerate(range(0, self.row.size, size)):
            if stop.is_set():
                raise Interrupted("stopped")
            self.row.pool = self.lane.sides[number % 2]
            self.row.space = self.row.pool.positions(self.row.slots, min(size, self.row.size))
            count = min(size, self.row.size - first)
            self.row.load(first, count)
            with self.lane.working():
                yield self._tile(first, count)

    def _tile(self, first: int, count: int) -> Tile:
        base = self._tensor(0, count)
        # One after the other, so that of a whole tensor few copies live at a time.
        inputs = [self._input(i, base, count) for i in range(1, len(self.row.slots))]
        return Tile(first, base, inputs)

    def _input(self, i: int, base: Tensor | None, count: int) -> Tensor:
        """Return an expert's tile as the chain takes it in: its delta, or its weight."""
        if self.space == "delta":
            return self._delta(i, base, count)
        value = self._tensor(i, count)
        if value is not None and not self.row.is_delta[i]:
            value = enter(base, value, self.space)
        elif base is not None:
            # Not added to where nothing is stored: an untouched -0.0 stays one.
            value = base if value is None else base + value
        elif value is None:
            value = torch.zeros(count, device=self.lane.device)
        return value

    def _delta(self, i: int, base: Tensor | None, count: int) -> Tensor:
        """Return an expert's difference to the base, and add up its squares, piece by piece."""
        stored = self._stored(i, count)
        if stored is None:
            return torch.zeros(count if base is None else base.shape, device=self.lane.device)
        result = torch.empty(stored.shape, device=self.lane.device)
        flat, raw = result.view(-1), stored.view(-1)
        for piece in self._pieces(count):
            value = raw[piece].float()
            self._count_bad(i, value)
            if not self.row.is_delta[i]:
                value = enter(None if base is None else base.view(-1)[piece], value, "delta")
            flat[piece] = value
            # In fp64, and without a copy of the piece in it.
            self.squares[i] += torch.linalg.vector_norm(value, dtype=torch.float64).square()
        return result

    def _pieces(self, count: int) -> list[slice]:
        """Return the pieces that fit the cache; on a GPU, where calls are dear, all as one."""
        step = _PIECE if self.lane.device.type == "cpu" else max(count, 1)
        return [slice(first, min(first + step, count)) for first in range(0, count, step)]

    def _tensor(self, i: int, count: int) -> Tensor | None:
        stored = self._stored(i, count)
        if stored is None:
            return None
        value = stored.float()
        self._count_bad(i, value)
        return value

    def _stored(self, i: int, count: int) -> Tensor | None:
        """Return an input's tile on the device, as it is stored; None where nothing is."""
        slot = self.row.slots[i]
        if not slot.dtype:
            return None
        dtype = DTYPES[slot.dtype]
        begin = int(self.row.at[i])
        raw = torch.from_numpy(self.row.pool.raw[begin : begin + count * dtype.itemsize])
        stored = self.lane.up(raw.view(dtype))
        shape = self.row.job.shape
        if self.whole:
            stored = stored.reshape(shape)
        elif self.rows and shape:
            stored = stored.reshape(-1, shape[-1])
        return stored

    def _count_bad(self, i: int, value: Tensor) -> None:
        """Count the entries that are not finite; a GPU is not waited for to see a sum first."""
        if value.is_cuda or not math.isfinite(value.sum(dtype=torch.float32)):
            self.bad[i] += (~torch.isfinite(value)).sum()

    def at(self, tile: Tile, link: Link) -> Place:
        """Return where a tile lies, with the random key of a step."""
        place = placed(link.stage, self.place, self.seed)
        return replace(place, start=tile.first)

    def transformed(self, tile: Tile, expert: int, steps: int | None = None) -> Tensor:
        """Return an expert's input after its first `steps` transforms (all of them if None)."""
        value = tile.inputs[expert]
        for link in self.before[self.names[expert]][:steps]:
            at = self.at(tile, link)
            beside = self._beside(link, tile, value)
            value = apply_transform(link.stage, value, at, link.answer, beside)
        return value

    def _beside(self, link: Link, tile: Tile, value: Tensor) -> Beside:
        """Return what a step may ask for beside its input, of a tile."""
        return Beside(self._part(link, tile, value), tile.base, tile.inputs, self.names)

    def _part(self, link: Link, tile: Tile, value: Tensor) -> Any:
        """Return what of a calibration tensor belongs to a tile."""
        if not isinstance(link.calibration, list):
            return self._cut(link.calibration, tile, value)
        return [self._cut(each, tile, value) for each in link.calibration]

    def _cut(self, whole: Tensor | None, tile: Tile, value: Tensor) -> Tensor | None:
        if whole is not None and not self.whole and whole.numel() == self.row.size:
            whole = whole.flatten()[tile.first : tile.first + value.numel()].reshape(value.shape)
        return whole.to(self.lane.device) if whole is not None else None

    def merged(self, tile: Tile, posts: int | None = None) -> Tensor:
        """Return the combine's result after the first `posts` posts (all of them if None)."""
        inputs = self._all_transformed(tile)
        link = self.combine
        place = self.at(tile, link)
        beside = self._beside(link, tile, inputs[0])
        value = apply_combine(link.stage, inputs, place, link.answer, beside)
        for link in self.after[:posts]:
            beside = self._beside(link, tile, value)
            value = apply_transform(link.stage, value, self.at(tile, link), link.answer, beside)
        return value

    def entries(self, first: int, count: int) -> NDArray[np.uint8]:
        """Return the bytes of entries [first, first + count), once all statistics are found.

        The next call may use the same memory.
        """
        dtype = DTYPES[self.row.job.dtype]
        self.row.pool = self.lane.sides[0]
        self.row.space = self.row.pool.positions(self.row.slots, count)
        self.row.load(first, count)
        with self.lane.working():
            self.squares.zero_()
            self.bad.zero_()
            tile = self._tile(first, count)
            result = finish(tile.base, self._decomposed(tile), self.space).to(dtype)
            self.bad[-1] += (~torch.isfinite(result)).sum()
            host = self.lane.buffer(result.numel() * dtype.itemsize)
            ticket = self.lane.down(result, host)
        self.lane.arrived(ticket)
        return host

    def _decomposed(self, tile: Tile) -> Tensor:
        """Return `merged`; what linear algebra cannot do is told with the tensor's name."""
        try:
            return self.merged(tile)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise DataError(
                f"`{self.combine.spec.name}` finds no solution: {error}",
                self.row.job.name,
                "a statistic of this tensor may be damaged (a Gram matrix has no negative"
                " eigenvalues); or give it to another op by a rule",
            ) from error

    def merge(self, write: Write, stop: threading.Event, *, allow_nonfinite: bool) -> None:
        """Find all statistics, then compute every tile and hand its bytes to `write`."""
        self.find_statistics(stop)
        self.check_finite(allow_nonfinite)
        dtype = DTYPES[self.row.job.dtype]
        waiting: list[tuple[Any, NDArray[np.uint8], int]] = []
        for tile in self.tiles(stop):
            if self.whole:  # a decomposition of NaN fails in words that name no tensor
                self.check_finite(allow_nonfinite)
            result = self._finished(tile, self._decomposed(tile), dtype)
            host = self.lane.buffer(result.numel() * dtype.itemsize)
            waiting.append((self.lane.down(result, host), host, tile.first * dtype.itemsize))
            # One result stays under way while the next tile is read.
            if len(waiting) > 1:
                self._write(*waiting.pop(0), write)
        for item in waiting:
            self._write(*item, write)
        with self.lane.working():
            self.row.norms[:] = self.squares.tolist()
        self.check_finite(allow_nonfinite)

    def _finished(self, tile: Tile, merged: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a tile of the output, flat: the base added to what was merged, and rounded."""
        flat = merged.reshape(-1)
        result = torch.empty(len(flat), dtype=dtype, device=self.lane.device)
        for piece in self._pieces(len(flat)):
            base = None if tile.base is None else tile.base.reshape(-1)[piece]
            result[piece] = finish(base, flat[piece], self.space)
            self._count_bad(-1, result[piece])
        return result

    def _write(self, ticket: Any, host: NDArray[np.uint8], offset: int, write: Write) -> None:
        self.lane.arrived(ticket)
        write(host, offset)

    def find_statistics(self, stop: threading.Event, until: int | None = None) -> None:
        """Sweep the row until no step waits for a statistic; see `torch_statistics`."""
        find_statistics(self, stop, until)

    def check_finite(self, allow: bool) -> None:
        """Raise DataError where the last sweep saw NaN or infinity."""
        with self.lane.working():
            self.row.bad[:] = self.bad.tolist()
        self.row.check_finite(allow)
