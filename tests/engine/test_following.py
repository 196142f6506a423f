"""The checksum of a file that is written out of order, and what it tells on its way."""

from __future__ import annotations

import hashlib
import random
import threading
from pathlib import Path

import pytest

from mergekit_lite.engine import following
from mergekit_lite.engine.following import FollowingHash

CHUNK, STRIDE = 1 << 10, 5 << 10
Told = list[tuple[int, int]]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "CHUNK", CHUNK)
    monkeypatch.setattr(following, "STRIDE", STRIDE)


def written(folder: Path, nbytes: int) -> tuple[Path, str]:
    """Return a file and its checksum."""
    data = random.Random(nbytes).randbytes(nbytes)
    (folder / "file").write_bytes(data)
    return folder / "file", hashlib.sha256(data).hexdigest()


def pieces(nbytes: int, seed: int, longest: int = 3 * CHUNK) -> list[tuple[int, int]]:
    """Return pieces (start, nbytes) that make up a file, shuffled."""
    chosen, found, start = random.Random(seed), [], 0
    while start < nbytes:
        size = min(chosen.randint(1, longest), nbytes - start)
        found.append((start, size))
        start += size
    chosen.shuffle(found)
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("nbytes", [1, CHUNK, STRIDE, 10 * STRIDE, 10 * STRIDE + 77])
def test_strides_are_told_once_and_in_order(tmp_path: Path, nbytes: int, seed: int) -> None:
    path, wanted = written(tmp_path, nbytes)
    told: Told = []
    hash_ = FollowingHash(path, lambda start, size: told.append((start, size)))
    done: set[int] = set()
    for start, size in pieces(nbytes, seed):
        hash_.wrote(start, size)
        done |= set(range(start, start + size))
        hash_.follow()
        complete = next((i for i in range(nbytes) if i not in done), nbytes)
        end = sum(told[-1]) if told else 0
        assert end <= complete, "told before it was there"
        assert complete - end < STRIDE + CHUNK, "told late"
    assert hash_.hexdigest(nbytes) == wanted
    assert [start for start, _ in told] == [0, *(sum(part) for part in told)][: len(told)]
    assert all(STRIDE <= size < STRIDE + CHUNK for _, size in told)
    assert nbytes - (sum(told[-1]) if told else 0) < STRIDE


def test_what_nobody_follows_is_told_at_the_end(tmp_path: Path) -> None:
    path, wanted = written(tmp_path, 2 * STRIDE + 5)
    told: Told = []
    hash_ = FollowingHash(path, lambda start, size: told.append((start, size)))
    assert hash_.hexdigest(2 * STRIDE + 5) == wanted
    assert told == [(0, STRIDE), (STRIDE, STRIDE)]


def test_nobody_need_be_told(tmp_path: Path) -> None:
    path, wanted = written(tmp_path, 3 * STRIDE)
    hash_ = FollowingHash(path)
    hash_.wrote(0, 3 * STRIDE)
    hash_.follow()
    assert hash_.hexdigest(3 * STRIDE) == wanted


def test_pieces_may_be_told_of_by_many_threads(tmp_path: Path) -> None:
    nbytes = 20 * STRIDE
    path, wanted = written(tmp_path, nbytes)
    told: Told = []
    hash_ = FollowingHash(path, lambda start, size: told.append((start, size)))
    parts = pieces(nbytes, 1, longest=200)
    left = [parts[i::4] for i in range(4)]

    def write(mine: Told) -> None:
        for part in mine:
            hash_.wrote(*part)

    workers = [threading.Thread(target=write, args=(mine,)) for mine in left]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        hash_.follow()
    hash_.follow()
    assert [start for start, _ in told] == [0, *(sum(part) for part in told)][: len(told)]
    assert nbytes - sum(told[-1]) < STRIDE
    assert hash_.hexdigest(nbytes) == wanted


def test_pieces_without_bytes_are_none(tmp_path: Path) -> None:
    path, wanted = written(tmp_path, 10)
    hash_ = FollowingHash(path)
    hash_.wrote(0, 4)
    hash_.wrote(4, 0)
    hash_.wrote(4, 6)
    hash_.follow()
    assert hash_.hexdigest(10) == wanted
