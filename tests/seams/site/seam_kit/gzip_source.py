"""A third party's source: a compressed checkpoint that is never a file on disk."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from mergekit_lite.checkpoint import Header, read_header_bytes
from mergekit_lite.sources import Model

FILE = "model.safetensors"


class Memory:
    """Serves byte ranges of what it holds."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_into(self, buffer: Any, offset: int) -> None:
        view = memoryview(buffer).cast("B")
        view[:] = self.data[offset : offset + len(view)]

    def close(self) -> None:
        self.data = b""


class GzipSource:
    """`gzip:PATH` is a compressed .safetensors file."""

    name = "gzip"

    def accepts(self, reference: str) -> bool:
        return reference.startswith("gzip:")

    def resolve(self, reference: str, relative_to: Path) -> Model:
        path = relative_to / reference.removeprefix("gzip:")
        data = gzip.decompress(path.read_bytes())
        tensors, metadata = read_header_bytes(data[: 1 << 20], FILE, len(data))
        header = Header(tensors, {FILE: len(data)}, metadata)
        return Model(
            reference, path, "checkpoint", "", header, None, (), None, lambda file: Memory(data)
        )
