"""Writes one safetensors file whose tensors' sizes are not known before they are computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint.header import header_text
from mergekit_lite.checkpoint.reader import FileReader
from mergekit_lite.checkpoint.writer import ShardWriter

_SPOOL = "tensors.spool"


class Spool:
    """Tensors in the order they come, then one safetensors file of all of them.

    Args:
        folder: working folder; the spool lies there until `finish`.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _SPOOL
        self._file = self._path.open("wb")
        self._tensors: list[tuple[str, str, tuple[int, ...]]] = []
        self._at = [0]

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, name: str, dtype: str, shape: tuple[int, ...], raw: NDArray[np.uint8]) -> None:
        """Append a tensor."""
        self._file.write(raw.data)
        self._tensors.append((name, dtype, shape))
        self._at.append(self._at[-1] + raw.nbytes)

    @property
    def empty(self) -> bool:
        """Whether nothing has been added."""
        return not self._tensors

    def finish(self, file: Path, metadata: Mapping[str, str]) -> None:
        """Write the safetensors file and remove the spool."""
        self._file.close()
        text, starts, nbytes = header_text(self._tensors, metadata)
        writer = ShardWriter(file.with_name(file.name + ".partial"), file, text, nbytes)
        with FileReader(self._path) as reader:
            for number, start in enumerate(starts):
                begin, end = self._at[number], self._at[number + 1]
                writer.copy_from(reader, begin, start, end - begin)
        writer.finish()
        self._path.unlink()
