"""sha256 of many files, two at a time in each thread."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels.sha256 import (
    BLOCK,
    compress_one,
    compress_two,
    hexdigest,
    new_states,
    padding,
    restart,
)
from mergekit_lite.plan.digests import CHUNK, Opener, Reading


def digests_in_pairs(files: Sequence[Opener], threads: int) -> list[str]:
    """Return the sha256 of every file, in order; each thread has at most two of them open."""
    left = SimpleQueue[tuple[int, Opener]]()
    for numbered in enumerate(files):
        left.put(numbered)
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(lambda _: _Pairs(left).digests(), range(threads)))
    found = {number: digest for part in parts for number, digest in part.items()}
    return [found[number] for number in range(len(files))]


class _Pairs:
    """Two files in step: as many blocks of both are hashed together as both have in memory."""

    def __init__(self, left: SimpleQueue[tuple[int, Opener]]) -> None:
        self._left = left
        self._found: dict[int, str] = {}
        self._states = new_states()
        self._slots: list[_Message | None] = [None, None]

    def digests(self) -> dict[int, str]:
        """Return the digests of all files that this thread has taken, by their numbers."""
        try:
            while any([self._filled(slot) for slot in (0, 1)]):
                self._compress()
        except BaseException:
            while not self._left.empty():  # the other threads need not go on
                with suppress(Empty):
                    self._left.get_nowait()
            raise
        finally:
            for message in filter(None, self._slots):
                message.steps.close()
        return self._found

    def _filled(self, slot: int) -> bool:
        """Give a slot something to hash, a new file if need be; return whether there is any."""
        while True:
            message = self._slots[slot] = self._slots[slot] or self._next(slot)
            if message is None or message.blocks or message.load():
                return message is not None
            self._found[message.number] = message.finish(self._states, slot)
            self._slots[slot] = None

    def _next(self, slot: int) -> _Message | None:
        try:
            number, opener = self._left.get_nowait()
        except Empty:
            return None
        restart(self._states, slot)
        return _Message(number, opener)

    def _compress(self) -> None:
        first, second = self._slots
        if first is not None and second is not None:
            blocks = min(first.blocks, second.blocks)
            compress_two(self._states, first.take(blocks), second.take(blocks), blocks)
            return
        for slot, message in enumerate(self._slots):
            if message is not None:
                compress_one(self._states, slot, message.take(message.blocks))


class _Message:
    """One file: a chunk of it in memory and how much of that has been hashed."""

    def __init__(self, number: int, opener: Opener) -> None:
        self.number = number
        self.steps = _steps(opener)
        self._chunk = memoryview(b"")
        self._taken = self._nbytes = 0

    @property
    def blocks(self) -> int:
        """Whole blocks of 64 bytes that are in memory and not yet hashed."""
        return len(self._chunk) // BLOCK - self._taken

    def load(self) -> bool:
        """Read on; return whether there is a whole block."""
        # Only the last chunk is not of whole blocks, and what is left of it is hashed at the end.
        if not len(self._chunk) % BLOCK:
            self._chunk = next(self.steps)
            self._taken = 0
            self._nbytes += len(self._chunk)
        return self.blocks > 0

    def take(self, blocks: int) -> NDArray[np.uint8]:
        """Return the next blocks."""
        begin = self._taken * BLOCK
        self._taken += blocks
        return np.frombuffer(self._chunk[begin : self._taken * BLOCK], np.uint8)

    def finish(self, states: NDArray[np.uint32], slot: int) -> str:
        """Hash what is left and return the digest, in hexadecimal."""
        rest = bytes(self._chunk[self._taken * BLOCK :])
        compress_one(states, slot, np.frombuffer(padding(rest, self._nbytes), np.uint8))
        digest = hexdigest(states, slot)
        if self._chunk:
            next(self.steps)
        with suppress(StopIteration):
            self.steps.send(digest)
        return digest


def _steps(opener: Opener) -> Generator[memoryview, str, None]:
    """Yield the chunks of a file and then nothing, which is to be answered by the digest."""
    with opener() as reading:
        buffer = memoryview(bytearray(CHUNK))
        while count := _fill(reading, buffer):
            yield buffer[:count]
        reading.keep((yield memoryview(b"")))


def _fill(reading: Reading, buffer: memoryview) -> int:
    """Read until the buffer is full or the file ends; return how many bytes there are."""
    done = 0
    while done < len(buffer) and (count := reading.read(buffer[done:])):
        done += count
    return done
