"""Models that lie in memory: no file to write for an example, and no file descriptor to copy from.

A base and experts are given as tensors; names, offsets and bytes are those of one weight file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mergekit_lite.checkpoint import Header, TensorInfo
from mergekit_lite.errors import DataError
from mergekit_lite.sources import Model

NAMES = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64",
    torch.int64: "I64", torch.bool: "BOOL",
}  # fmt: skip
FILE = "model.safetensors"


class MemoryReader:
    """The bytes of a weight file, without `fileno`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.closed = False

    def read_into(self, buffer: Any, offset: int) -> None:
        view = memoryview(buffer).cast("B") if memoryview(buffer).nbytes else memoryview(b"")
        part = self.data[offset : offset + len(view)]
        if len(part) < len(view):
            raise DataError(f"`{FILE}` ends early")
        view[:] = part

    def close(self) -> None:
        self.closed = True


def memory_model(name: str, tensors: Mapping[str, torch.Tensor], *, skew: int = 24) -> Model:
    """Return a model of these tensors, the first of which begins at byte `skew`."""
    data, infos = bytearray(skew), {}
    for key, tensor in tensors.items():
        infos[key] = TensorInfo(key, NAMES[tensor.dtype], tuple(tensor.shape), FILE, len(data))
        data += tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    reader = MemoryReader(bytes(data))
    return Model(
        reference=f"memory:{name}",
        root=Path("nowhere") / name,
        kind="checkpoint",
        revision="",
        header=Header(tensors=infos, files={FILE: len(data)}, metadata={}),
        config=None,
        companions=(),
        adapter=None,
        open=lambda file: reader,
    )


def memory_models(tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, Model]:
    """Return models by name (`base`, experts) from tensors by name."""
    return {name: memory_model(name, group) for name, group in tensors.items()}


def one_tensor(
    base: torch.Tensor, experts: Mapping[str, torch.Tensor], name: str = "w"
) -> dict[str, Model]:
    """Return models that have one tensor."""
    return memory_models({"base": {name: base}, **{e: {name: t} for e, t in experts.items()}})
