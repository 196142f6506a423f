"""sha256 of many files, two at a time in each thread."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from heapq import heappop, heappush
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels.sha256 import (
    BLOCK,
    compress_one,
    compress_two,
    hexdigest,
    new_states,
    padding,
)
from mergekit_lite.plan.digests import Opener, Reading, chunk

TURN = 32 << 20
"""Bytes of a file after which another one is hashed that is further behind."""


def digests_in_pairs(files: Sequence[Opener], threads: int, places: Sequence[int]) -> list[str]:
    """Return the sha256 of every file, in order; each thread hashes two of them at a time.

    Args:
        files: to be hashed.
        threads: which hash at the same time.
        places: how many bytes of its model come before each file. All models are read in step, as
            a merge reads them, so that what both need is read from the disk only once.
    """
    left = _Queue()
    for number, (opener, place) in enumerate(zip(files, places, strict=True)):
        left.put(_Message(number, opener, place))
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(lambda _: _Pairs(left).digests(), range(threads)))
    found = {number: digest for part in parts for number, digest in part.items()}
    return [found[number] for number in range(len(files))]


class _Queue:
    """Files that no thread has in hand; the one that is furthest behind comes first."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: list[tuple[int, int, _Message]] = []

    def put(self, message: _Message) -> None:
        with self._lock:
            heappush(self._waiting, (message.position, message.number, message))

    def get(self) -> _Message | None:
        with self._lock:
            return heappop(self._waiting)[-1] if self._waiting else None


class _Pairs:
    """Two files in step: as many blocks of both are hashed together as both have in memory."""

    def __init__(self, left: _Queue) -> None:
        self._left = left
        self._found: dict[int, str] = {}
        self._states = new_states()
        self._slots: list[_Message | None] = [None, None]

    def digests(self) -> dict[int, str]:
        """Return the digests of all files that this thread has read the end of, by number."""
        try:
            while any([self._filled(slot) for slot in (0, 1)]):
                self._compress()
        except BaseException:
            while message := self._left.get():  # the other threads need not go on
                message.steps.close()
            raise
        finally:
            for held in filter(None, self._slots):
                held.steps.close()
        return self._found

    def _filled(self, slot: int) -> bool:
        """Give a slot something to hash, another file if need be; return whether there is any."""
        while True:
            message = self._slots[slot] = self._slots[slot] or self._next(slot)
            if message is None or message.blocks:
                return message is not None
            if message.turn >= TURN:
                message.state = self._states[slot].copy()
                self._slots[slot] = None
                self._left.put(message)
            elif message.load():
                return True
            else:
                self._found[message.number] = message.finish(self._states, slot)
                self._slots[slot] = None

    def _next(self, slot: int) -> _Message | None:
        message = self._left.get()
        if message is not None:
            message.turn = 0
            self._states[slot] = message.state
        return message

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
    """One file: a chunk of it in memory and how much of that has been hashed.

    Attributes:
        state: of its hash, while no thread has it in hand.
        turn: bytes that have been read since a thread has it in hand.
    """

    def __init__(self, number: int, opener: Opener, place: int) -> None:
        self.number = number
        self.steps = _steps(opener)
        self.state = new_states()[0]
        self.turn = 0
        self._place = place
        self._chunk = memoryview(b"")
        self._taken = self._nbytes = 0

    @property
    def position(self) -> int:
        """How many bytes of its model have been read, all files before it counted."""
        return self._place + self._nbytes

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
            self.turn += len(self._chunk)
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
        buffer = chunk()
        while count := _fill(reading, buffer):
            yield buffer[:count]
        reading.keep((yield memoryview(b"")))


def _fill(reading: Reading, buffer: memoryview) -> int:
    """Read until the buffer is full or the file ends; return how many bytes there are."""
    done = 0
    while done < len(buffer) and (count := reading.read(buffer[done:])):
        done += count
    return done
