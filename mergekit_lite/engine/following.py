"""The checksum of a file that several workers write out of order."""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections.abc import Callable
from pathlib import Path

from mergekit_lite.checkpoint import FileReader
from mergekit_lite.checkpoint.reader import ALIGNMENT

CHUNK = 1 << 20
STRIDE = 16 << 20
"""Bytes after which it is told how far the file is complete."""


class FollowingHash:
    """sha256 of a growing file: hashes whatever is complete from its beginning on.

    A file read back at its end would keep one core busy while all others wait.

    Args:
        path: the file; it must exist when `follow` is first called.
        passed: told of every stride of bytes, as (start, nbytes), once it has been hashed.
    """

    def __init__(self, path: Path, passed: Callable[[int, int], None] | None = None) -> None:
        self.path = path
        self._passed = passed
        self._told = 0
        self._hash = hashlib.sha256()
        self._position = 0
        self._written: dict[int, int] = {}
        self._lock = threading.Lock()
        self._reader: FileReader | None = None
        self._memory = memoryview(b"")

    def wrote(self, start: int, nbytes: int) -> None:
        """Note that bytes [start, start + nbytes) have been written; any thread may."""
        if nbytes:
            with self._lock:
                self._written[start] = start + nbytes

    def follow(self) -> None:
        """Hash all that is complete; only one thread at a time may."""
        while (end := self._next_end()) is not None:
            self._hash_to(end)

    def hexdigest(self, nbytes: int) -> str:
        """Return the sha256 of the first `nbytes` bytes, which are the whole file."""
        self._hash_to(nbytes)
        self.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close the file."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
            self._memory = memoryview(b"")

    def _next_end(self) -> int | None:
        with self._lock:
            return self._written.pop(self._position, None)

    def _hash_to(self, end: int) -> None:
        if self._reader is None:
            self._reader = FileReader(self.path)
            # It begins with a page, and numpy need not be there.
            self._memory = memoryview(mmap.mmap(-1, CHUNK + ALIGNMENT))
        while self._position < end:
            skip = self._position % ALIGNMENT
            part = self._memory[skip : skip + min(CHUNK, end - self._position)]
            self._reader.read_into(part, self._position)
            self._hash.update(part)
            self._position += len(part)
            if self._passed and self._position - self._told >= STRIDE:
                self._passed(self._told, self._position - self._told)
                self._told = self._position
