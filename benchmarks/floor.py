"""The floor of a merge: read every input byte once, write every output byte once.

One thread, one 1 MiB buffer whose address is congruent to the file offset modulo 64 (on some
processors the copy out of the page cache is five times slower otherwise), no Python start-up.
The write is timed twice over: until the last `write` returned, and until `fsync` returned.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20


@dataclass(frozen=True)
class Floor:
    """Seconds of the plain input and output of a merge.

    Attributes:
        read: every input byte, once.
        write: every output byte, once, into new files.
        sync: what fsync adds to that.
    """

    read: float
    write: float
    sync: float

    @property
    def seconds(self) -> float:
        """The floor that ratios are taken against: without fsync, so the lower of the two."""
        return self.read + self.write


def _read(path: Path, buffer: memoryview) -> None:
    # A page-aligned buffer and offsets in whole chunks are congruent modulo 64 by themselves.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while os.readv(descriptor, [buffer]):
            pass
    finally:
        os.close(descriptor)


def _write(path: Path, nbytes: int, buffer: memoryview) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    while nbytes:
        nbytes -= os.write(descriptor, buffer[: min(CHUNK, nbytes)])
    return descriptor


def floor(inputs: Sequence[Path], outputs: Sequence[int], scratch: Path) -> Floor:
    """Measure the floor for these input files and these output file sizes.

    Args:
        inputs: weight files that the merge must read.
        outputs: sizes in bytes of the files it must write.
        scratch: a folder on the file system the merge writes to; left as it was.
    """
    with mmap.mmap(-1, CHUNK) as pages, memoryview(pages) as buffer:
        buffer[:] = os.urandom(CHUNK)
        start = time.perf_counter()
        for path in inputs:
            _read(path, buffer)
        read = time.perf_counter() - start

        written = [scratch / f"floor-{number}.bin" for number in range(len(outputs))]
        descriptors: list[int] = []
        try:
            start = time.perf_counter()
            descriptors = [
                _write(path, nbytes, buffer) for path, nbytes in zip(written, outputs, strict=True)
            ]
            write = time.perf_counter() - start
            for descriptor in descriptors:
                os.fsync(descriptor)
            sync = time.perf_counter() - start - write
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            for path in written:
                path.unlink(missing_ok=True)
    return Floor(read, write, sync)
