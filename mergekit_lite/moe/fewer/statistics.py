"""What a measurement says of the experts of each layer, read without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import FileReader, Header, Reader, TensorInfo, read_checkpoint
from mergekit_lite.errors import DataError, SourceError
from mergekit_lite.sources import Model

Numbers = NDArray[np.float64]
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def layer_statistics(
    folder: Path, kind: str, layer: int, names: Collection[str] | None = None
) -> dict[str, Numbers]:
    """Return what was measured of a layer's experts, by the last part of its name.

    Args:
        folder: of statistics.
        kind: of them.
        layer: index of the layer.
        names: those that are wanted, of which some may not be there; all if None.

    Raises:
        SourceError: nothing of this kind, or of this layer, was measured.
        DataError: a file is damaged.
    """
    file = folder / kind / f"layer-{layer:05d}.safetensors"
    if not file.is_file():
        raise SourceError(
            f"`{folder}` has no statistics `{kind}` of layer {layer}",
            hint=f"measure the base with `mergekit-lite calibrate --collect {kind}`",
        )
    header = read_checkpoint(file)
    found = {}
    with FileReader(file) as reader:
        for name, info in header.tensors.items():
            short = name.rpartition(".")[2]
            if names is None or short in names:
                found[short] = tensor(reader, info)
    return found


def tensor(reader: Reader, info: TensorInfo) -> Numbers:
    """Return the entries of a stored tensor in fp64.

    Raises:
        DataError: they are no floats.
    """
    if info.dtype not in (*_TYPES, "BF16"):
        raise DataError(f"`{info.name}` holds {info.dtype}, not floats")
    raw = np.empty(info.nbytes, np.uint8)
    reader.read_into(raw, info.start)
    if info.dtype == "BF16":
        wide = raw.view("<u2").astype("<u4") << 16
        return wide.view("<f4").astype(np.float64).reshape(info.shape)
    return raw.view(_TYPES[info.dtype]).astype(np.float64).reshape(info.shape)


def weight(model: Model, header: Header, name: str) -> Numbers:
    """Return a tensor of a model in fp64."""
    info = header.tensors[name]
    reader = model.open(info.file)
    try:
        return tensor(reader, info)
    finally:
        reader.close()


def has_all(found: Mapping[str, Numbers], wanted: tuple[str, ...]) -> bool:
    """Return whether a measurement has these statistics."""
    return all(name in found for name in wanted)
