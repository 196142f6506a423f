from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.checkpoint import FileReader, Reader, aligned_buffer
from mergekit_lite.errors import DataError, SourceError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(200)))
    return path


def test_reads_into_any_buffer(file: Path) -> None:
    with FileReader(file) as reader:
        assert isinstance(reader, Reader)
        array = np.zeros((2, 3), dtype=np.uint16)
        reader.read_into(array, 4)
        assert array.tobytes() == bytes(range(4, 16))
        plain = bytearray(5)
        reader.read_into(memoryview(plain)[1:4], 100)
        assert plain == b"\0def\0"
        reader.read_into(np.zeros((0, 3)), 10_000)
        assert os.pread(reader.fileno(), 1, 7) == b"\7"
    reader.close()


def test_short_reads_are_continued(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv

    def few(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        return whole(descriptor, [buffers[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", few)
    buffer = bytearray(150)
    FileReader(file).read_into(buffer, 20)
    assert buffer == bytes(range(20, 170))


def test_a_file_that_ends_early_is_damage(file: Path) -> None:
    with FileReader(file) as reader, pytest.raises(DataError) as caught:
        reader.read_into(bytearray(30), 180)
    assert "ends at byte 200; 10 more were expected" in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_device_error_is_told_with_its_place(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with FileReader(file) as reader, pytest.raises(DataError, match="at byte 1,000: Input/output"):
        reader.read_into(bytearray(3), 1000)


def test_an_absent_file_is_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        FileReader(tmp_path / "absent")


@pytest.fixture
def folded_memory() -> Iterator[memoryview]:
    """A buffer of 2 GiB and one page that takes 2 MiB: the same memory over and over."""
    if not sys.platform.startswith("linux"):
        pytest.skip("maps memory the way Linux does")
    window, nbytes = 2 << 20, (1 << 31) + mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    access = mmap.PROT_READ | mmap.PROT_WRITE
    fixed = 0x10
    descriptor = os.memfd_create("window")
    os.truncate(descriptor, window)
    start = libc.mmap(None, nbytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    for place in range(0, nbytes, window):
        length = min(window, nbytes - place)
        libc.mmap(start + place, length, access, mmap.MAP_SHARED | fixed, descriptor, 0)
    yield memoryview((ctypes.c_ubyte * nbytes).from_address(start))
    libc.munmap(start, nbytes)
    os.close(descriptor)


def test_more_than_two_gigabytes_in_one_call(folded_memory: memoryview) -> None:
    # The file is a hole with a mark at its end: it takes no space, and one call cannot read it.
    nbytes = folded_memory.nbytes
    descriptor = os.memfd_create("sparse")
    os.truncate(descriptor, nbytes)
    os.pwrite(descriptor, b"tail", nbytes - 4)
    assert os.preadv(descriptor, [folded_memory], 0) < nbytes
    with FileReader(f"/proc/self/fd/{descriptor}") as reader:
        reader.read_into(folded_memory, 0)
    os.close(descriptor)
    assert folded_memory[-4:].tobytes() == b"tail"


@given(st.integers(1, 300), st.integers(0, 1 << 40))
def test_buffers_are_congruent_to_the_file_offset(nbytes: int, offset: int) -> None:
    buffer = aligned_buffer(nbytes, offset)
    assert buffer.ctypes.data % 64 == offset % 64
    assert (len(buffer), buffer.dtype) == (nbytes, np.uint8)
