"""What a patch holds: its size against that of the model, and what it misses, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mergekit_lite.checkpoint import DTYPE_BYTES, layer_of
from mergekit_lite.checkpoint.patch import SAME, WHOLE, Patch, PatchRow, parts_of
from mergekit_lite.checkpoint.patch_shared import PREFIX
from mergekit_lite.errors import RecipeError

if TYPE_CHECKING:
    from mergekit_lite.sources import Model


@dataclass(frozen=True)
class Part:
    """Some of a patch's tensors.

    Attributes:
        tensors: how many.
        entries: of the model.
        dense: bytes that they take in the base's dtype.
        stored: bytes that the patch stores of them.
        norm: L2 norm of their differences.
        error: L2 norm of what is missed, over `norm`; 0 where nothing differs.
    """

    tensors: int
    entries: int
    dense: int
    stored: int
    norm: float
    error: float

    @property
    def ratio(self) -> float:
        """How many times smaller they are stored; 0 where nothing is."""
        return self.dense / self.stored if self.stored else 0.0


@dataclass(frozen=True)
class PatchSummary:
    """What the header of a patch says.

    Attributes:
        codec: by which it was made.
        parameters: of the codec.
        base: name of the base.
        file_bytes: of the whole file, header included.
        model: all tensors of the base.
        compressed: those whose differences are compressed.
        whole: those that are stored whole.
        same: tensors that are the base's.
        layers: name of a layer, or `outside` -> its tensors.
    """

    codec: str
    parameters: Mapping[str, Any]
    base: str
    file_bytes: int
    model: Part
    compressed: Part
    whole: Part
    same: int
    layers: Mapping[str, Part]

    @property
    def ratio(self) -> float:
        """How many times smaller the whole file is than the model."""
        return self.model.dense / self.file_bytes

    @property
    def bits(self) -> float:
        """Bits of the whole file for each entry of the model."""
        return 8 * self.file_bytes / max(self.model.entries, 1)

    def plain(self) -> dict[str, Any]:
        """Return the summary as JSON-able data."""
        return {**asdict(self), "ratio": self.ratio, "bits": self.bits}


def summarise_patch(model: Model) -> PatchSummary:
    """Return the summary of a patch.

    Raises:
        RecipeError: the model is no patch.
    """
    patch = model.adapter.patch if model.adapter is not None else None
    if patch is None:
        raise RecipeError("is not a patch", model.reference)
    rows = patch.rows
    layers: dict[str, list[str]] = {}
    for name in rows:
        layer = layer_of(name)
        layers.setdefault("outside" if layer is None else str(layer), []).append(name)
    ordered = sorted(layers, key=lambda key: -1 if key == "outside" else int(key))
    kinds = {name: row.scheme for name, row in rows.items()}
    return PatchSummary(
        codec=patch.codec,
        parameters=patch.parameters,
        base=patch.base,
        file_bytes=next(iter(model.header.files.values())),
        model=_part(patch, model, rows),
        compressed=_part(patch, model, [n for n in rows if kinds[n] not in (SAME, WHOLE)]),
        whole=_part(patch, model, [n for n in rows if kinds[n] == WHOLE]),
        same=sum(kind == SAME for kind in kinds.values()),
        layers={key: _part(patch, model, layers[key]) for key in ordered},
    )


def _part(patch: Patch, model: Model, names: Iterable[str]) -> Part:
    found: list[tuple[PatchRow, int]] = []
    for name in names:
        row = patch.rows[name]
        stored = {} if row.scheme == SAME else parts_of(name, row, model.header.tensors)
        # What a patch shares with others is in a file of its own.
        own = (part.nbytes for key, part in stored.items() if not key.startswith(PREFIX))
        found.append((row, sum(own)))
    entries = [math.prod(row.shape) for row, _ in found]
    squares = math.fsum(row.norm**2 for row, _ in found)
    missed = math.fsum(row.error**2 for row, _ in found)
    return Part(
        tensors=len(found),
        entries=sum(entries),
        dense=sum(n * DTYPE_BYTES[row.dtype] for n, (row, _) in zip(entries, found, strict=True)),
        stored=sum(nbytes for _, nbytes in found),
        norm=math.sqrt(squares),
        error=math.sqrt(missed / squares) if squares else 0.0,
    )
