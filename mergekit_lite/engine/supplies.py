"""What brings tiles of a row's inputs into memory, one kind of input each.

A row knows its inputs as `Supply` only. Another way of storing or computing an input is another
class here (or in a file of its own), an entry in `supply_of` and its form in `form_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES, TensorInfo
from mergekit_lite.engine.adapted import adapter_supply, joined_supply
from mergekit_lite.engine.blocks import blocks_dtype, blocks_of
from mergekit_lite.engine.dequantised import Decoder, decoder
from mergekit_lite.engine.joined import JoinedRead
from mergekit_lite.engine.ordered import ordered
from mergekit_lite.engine.pieced import pieced, pieced_dtype
from mergekit_lite.engine.staged import stage_supply
from mergekit_lite.errors import DataError
from mergekit_lite.plan.types import GATE, Block, Gather, Job, Read

if TYPE_CHECKING:
    from mergekit_lite.engine.gathered import Gathered
    from mergekit_lite.engine.inputs import Readers
    from mergekit_lite.sources import Model


class Supply(Protocol):
    """One input of a row, tile by tile."""

    @property
    def dtype(self) -> str:
        """Dtype of the entries it puts into memory."""

    @property
    def is_delta(self) -> bool:
        """Whether they are differences to the base, not weights."""

    def offset(self, first: int) -> int:
        """Return the file offset of entry `first`; a tile lies in memory as it does in the file.

        0 for what does not come straight from a file.
        """

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        """Put the bytes of entries [first, first + count) into `out`."""


@dataclass
class Stored:
    """A tensor as it is on the disk."""

    readers: Readers
    source: str
    info: TensorInfo
    is_delta = False

    @property
    def dtype(self) -> str:
        return self.info.dtype

    def offset(self, first: int) -> int:
        return self.info.start + first * DTYPE_BYTES[self.info.dtype]

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        self.readers.read(self.source, self.info, first * DTYPE_BYTES[self.info.dtype], out)


@dataclass
class Dequantised:
    """A tensor that is stored as codes, as the fp32 numbers they stand for."""

    decoder: Decoder
    dtype = "F32"
    is_delta = False

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        self.decoder.fill(first, out.view(np.float32))


def supply_of(read: Read, job: Job, readers: Readers) -> Supply | None:
    """Return what supplies an input of a row, None for one that is as the base or not there."""
    if isinstance(read, JoinedRead):
        return joined_supply(read, readers)
    if read.blocks:
        return blocks_of(read, lambda block: _of_block(block, job, readers))
    if read.zero or not (read.name or read.lora):
        return None
    if read.gather is not None:
        return _gathered(read.gather, job, readers)
    if read.lora is not None:
        return adapter_supply(read, job, readers, lambda stored: supply_of(stored, job, readers))
    if read.pieces:
        return pieced(read, lambda name: _of_tensor(readers.info(read.source, name), read, readers))
    info = readers.info(read.source, read.name)
    if prod(info.shape) != prod(job.shape):
        raise DataError(
            f"`{info.name}` has shape {list(info.shape)}, the plan says {list(job.shape)}",
            where=read.source,
        )
    return _of_tensor(info, read, readers)


def _of_block(block: Block, job: Job, readers: Readers) -> Supply | None:
    """Return what supplies a block's whole matrix, in the order in which it is looked at."""
    order = block.order
    shape = block.stored if order is None else order.stored
    supply = supply_of(block.read, replace(job, shape=shape), readers)
    if order is None or supply is None:
        return supply
    return ordered(supply, order, readers.tensor(GATE, order.name))


def _of_tensor(info: TensorInfo, read: Read, readers: Readers) -> Supply:
    if info.computed is not None:
        return stage_supply(read.source, info.name, readers)
    if info.coded is not None:
        return Dequantised(decoder(info, partial(readers.read, read.source)))
    return Stored(readers, read.source, info)


def form_of(read: Read, models: Mapping[str, Model]) -> tuple[str, bool]:
    """Return `dtype` (empty for none) and `is_delta` of what `supply_of` will give."""
    if isinstance(read, JoinedRead):
        return "F32", True
    if read.blocks:
        forms = [form_of(block.read, models)[0] for block in read.blocks]
        return blocks_dtype(forms, read.blocks), Stored.is_delta
    if read.zero or not (read.name or read.lora):
        return "", True
    if read.lora is not None:
        return "F32", read.lora.is_delta
    if read.gather is not None:
        return read.gather.dtype, Stored.is_delta
    tensors = models[read.source].header.tensors
    names = dict.fromkeys(piece.name for piece in read.pieces) or [read.name]
    return pieced_dtype([tensors[name].loaded for name in names]), Stored.is_delta


def _gathered(gather: Gather, job: Job, readers: Readers) -> Gathered:
    """Return an input made of rows of the parts, each of which is supplied as its read says."""
    from mergekit_lite.engine.gathered import Gathered

    row_map = readers.row_maps[gather.map]
    base = job.base
    if base is not None and base.gather is not None:
        # What an adapter adds to is the base as it is stored.
        base = base.gather.parts[0]
    parts = []
    for part, rows in zip(gather.parts, row_map.stored, strict=True):
        stored = replace(job, shape=(rows, *job.shape[1:]), base=base)
        supply = supply_of(part, stored, readers)
        if supply is None:
            raise DataError("nothing to gather rows from", where=f"{part.source}: {job.name}")
        parts.append(supply)
    return Gathered(parts, row_map, prod(job.shape[1:]), gather.dtype)


@dataclass
class Slot:
    """One input of a row and what supplies it; None where there is nothing to read."""

    read: Read
    supply: Supply | None

    @property
    def dtype(self) -> str:
        """Dtype of the entries in memory; empty when there are none."""
        return self.supply.dtype if self.supply is not None else ""

    @property
    def is_delta(self) -> bool:
        """Whether the expert is the base plus this; so is one that has nothing to say."""
        return self.supply is None or self.supply.is_delta


def slots_of(job: Job, readers: Readers) -> list[Slot]:
    """Return the base's slot (empty when the row does not need it) and then every read's."""
    nothing = Read(source="", name="", zero=True)
    return [Slot(read, supply_of(read, job, readers)) for read in (job.base or nothing, *job.reads)]
