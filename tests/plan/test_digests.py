"""Digests of many files, one at a time and in pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from mergekit_lite.kernels.sha256 import compress_two, is_possible
from mergekit_lite.kernels.warm import compile_kernels
from mergekit_lite.plan import digests, pairs
from mergekit_lite.plan.digests import CHUNK, DigestCache, Reading, digests_of, reading_file

# Around the ends of blocks, of padding and of chunks, and of unequal lengths in a pair.
SIZES = (0, 1, 55, 56, 63, 64, 65, 119, 120, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 77, 2, 5000)
needs_sha = pytest.mark.skipif(not is_possible(), reason="no instructions for sha256")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Files of many sizes, with their digests."""
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for number, size in enumerate(SIZES):
        path = folder / str(number)
        content = bytes((i * 7 + number) % 251 for i in range(size % CHUNK)) + bytes(
            size - size % CHUNK
        )
        path.write_bytes(content)
        made[path] = hashlib.sha256(content).hexdigest()
    return made


@pytest.fixture(params=[pytest.param(True, marks=needs_sha), False], ids=["pairs", "single"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        compile_kernels([compress_two])
    monkeypatch.setattr(digests, "_can_pair", lambda: request.param)


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("count", [0, 1, 2, 3, len(SIZES)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_digests_are_those_of_hashlib(files: dict[Path, str], count: int, threads: int) -> None:
    chosen = list(files)[-count:] if count else []
    found = digests_of([partial(reading_file, path) for path in chosen], threads)
    assert found == [files[path] for path in chosen]


@pytest.mark.usefixtures("_either_way")
def test_what_is_remembered_is_not_read(files: dict[Path, str], tmp_path: Path) -> None:
    cache = DigestCache(tmp_path / "cache")
    read: list[int] = []
    openers = [partial(reading_file, path, cache, read.append) for path in files]
    assert digests_of(openers[::2]) == list(files.values())[::2]
    assert sum(read) == sum(SIZES[::2])
    read.clear()
    assert digests_of(openers) == list(files.values())
    assert sum(read) == sum(SIZES[1::2])
    read.clear()
    assert digests_of(openers) == list(files.values())
    assert not read


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("broken", [0, 3])
def test_a_file_that_cannot_be_read_ends_all_and_closes_them(
    files: dict[Path, str], broken: int, threads: int
) -> None:
    held: set[Path] = set()

    @contextmanager
    def opened(number: int, path: Path) -> Iterator[Reading]:
        try:
            with reading_file(path) as reading:
                held.add(path)
                if number == broken:
                    reading.read = lambda buffer: (_ for _ in ()).throw(OSError("bad sector"))
                yield reading
        except OSError as error:
            raise ValueError(f"file {number}") from error
        finally:
            held.discard(path)

    with pytest.raises(ValueError, match=f"file {broken}"):
        digests_of([partial(opened, n, path) for n, path in enumerate(files)], threads)
    assert not held


@pytest.mark.usefixtures("_either_way")
def test_short_reads_are_continued(files: dict[Path, str]) -> None:
    @contextmanager
    def opened(path: Path) -> Iterator[Reading]:
        with reading_file(path) as reading:
            read = reading.read
            reading.read = lambda buffer: read(buffer[: max(1, len(buffer) // 3)])
            yield reading

    assert digests_of([partial(opened, path) for path in files]) == list(files.values())


@needs_sha
def test_files_of_models_are_read_in_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three models: one of a single file, two of two each; none runs far ahead."""
    compile_kernels([compress_two])
    monkeypatch.setattr(pairs, "TURN", 2 * CHUNK)
    sizes = {"a": 8, "b0": 4, "b1": 4, "c0": 6, "c1": 2}
    places = dict.fromkeys(sizes, 0) | {"b1": 4 * CHUNK, "c1": 6 * CHUNK}
    read = dict.fromkeys("abc", 0)
    most = []

    def noted(name: str, count: int) -> None:
        read[name[0]] += count
        most.append(max(read.values()) - min(read.values()))

    wanted = []
    for name, size in sizes.items():
        content = name.encode() * (size * CHUNK // len(name))
        (tmp_path / name).write_bytes(content)
        wanted.append(hashlib.sha256(content).hexdigest())
    openers = [partial(reading_file, tmp_path / n, progress=partial(noted, n)) for n in sizes]
    assert digests_of(openers, 1, list(places.values())) == wanted
    # Two files are in hand: what waits may be behind by a turn of each.
    assert max(most) <= 2 * 2 * CHUNK
    assert set(read.values()) == {8 * CHUNK}


@needs_sha
def test_pairs_are_used_once_the_kernel_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_kernels([compress_two])
    assert digests._can_pair()
    monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    assert not digests._can_pair()
