from __future__ import annotations

import ctypes
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mergekit_lite.checkpoint import FileReader, ShardWriter, header_text, read_checkpoint
from mergekit_lite.checkpoint import writer as writer_module
from mergekit_lite.errors import DataError, ResourceError
from tests.checkpoints import read_weights, tiny_llama


class MemoryReader:
    """A reader without a file descriptor, as a third-party source may have."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read_into(self, buffer: Any, offset: int) -> None:
        view = memoryview(buffer).cast("B")
        view[:] = self.content[offset : offset + len(view)]

    def close(self) -> None:
        pass


def begin(folder: Path, nbytes: int, name: str = "out") -> tuple[ShardWriter, int]:
    """A writer for one U8 tensor of `nbytes` entries, and where that tensor starts."""
    text, starts, total = header_text([("x", "U8", (nbytes,))], {})
    writer = ShardWriter(folder / f"{name}.partial", folder / f"{name}.safetensors", text, total)
    return writer, starts[0]


def bytes_of(value: torch.Tensor) -> memoryview:
    return memoryview(value.reshape(-1).view(torch.uint8).numpy())


def test_file_equals_that_of_the_safetensors_library(tmp_path: Path) -> None:
    tensors = read_weights(tiny_llama(tmp_path / "model"))
    tensors |= {"mask": torch.tensor([True, False, True]), "scale": torch.tensor(2.5)}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    kinds = {torch.bfloat16: "BF16", torch.bool: "BOOL", torch.float32: "F32"}
    rows = [(name, kinds[v.dtype], tuple(v.shape)) for name, v in tensors.items()]
    text, starts, nbytes = header_text(rows, {"format": "pt"})
    writer = ShardWriter(tmp_path / "ours.partial", tmp_path / "ours", text, nbytes)
    with ThreadPoolExecutor(4) as pool:
        values = reversed([*zip(tensors.values(), starts, strict=True)])
        list(pool.map(lambda pair: writer.write(bytes_of(pair[0]), pair[1]), values))
    assert not (tmp_path / "ours").exists()
    writer.finish()
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert not (tmp_path / "ours.partial").exists()


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:7], offset))
    writer, start = begin(tmp_path, 100)
    writer.write(bytes(range(100)), start)
    writer.finish()
    assert (tmp_path / "out.safetensors").read_bytes()[start:] == bytes(range(100))
    assert read_checkpoint(tmp_path / "out.safetensors").tensors["x"].start == start


def test_more_than_two_gigabytes_in_one_call() -> None:
    from mergekit_lite.checkpoint.writer import _write_all

    # The null device takes as much in one call as any file does, and stores nothing.
    nbytes = (1 << 31) + 4096
    data = np.zeros(nbytes, dtype=np.uint8)
    descriptor = os.open(os.devnull, os.O_WRONLY)
    calls = []
    try:
        with pytest.MonkeyPatch.context() as patch:
            whole = os.pwrite

            def counted(fd: int, view: memoryview, offset: int) -> int:
                calls.append((offset, whole(fd, view, offset)))
                return calls[-1][1]

            patch.setattr(os, "pwrite", counted)
            _write_all(descriptor, data, 10)
    finally:
        os.close(descriptor)
    assert len(calls) == 2
    assert sum(count for _, count in calls) == nbytes
    assert calls[1][0] == 10 + calls[0][1]


def test_writes_and_copies_past_four_gigabytes(tmp_path: Path) -> None:
    nbytes = (4 << 30) + 100
    source = tmp_path / "source"
    with source.open("wb") as stream:
        stream.truncate(nbytes)
        stream.seek(nbytes - 5)
        stream.write(b"12345")
    writer, start = begin(tmp_path, nbytes)
    writer.write(b"front", start)
    with FileReader(source) as reader:
        writer.copy_from(reader, nbytes - 50, start + nbytes - 50, 50)
    writer.finish()
    with FileReader(tmp_path / "out.safetensors") as reader:
        ends = bytearray(10)
        reader.read_into(memoryview(ends)[:5], start)
        reader.read_into(memoryview(ends)[5:], start + nbytes - 5)
    assert ends == b"front12345"
    (tmp_path / "out.safetensors").unlink()


@pytest.fixture
def content() -> bytes:
    return np.random.default_rng(0).bytes(20_000_000)


@pytest.mark.parametrize(
    "refusal", [None, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, "zero", "absent"]
)
def test_copies_with_or_without_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, refusal: int | str | None
) -> None:
    (tmp_path / "source").write_bytes(content)
    whole, calls = os.copy_file_range, []

    def limited(src: int, dst: int, count: int, src_at: int, dst_at: int) -> int:
        calls.append(count)
        if len(calls) > 2 and refusal == "zero":
            return 0
        if len(calls) > 2 and isinstance(refusal, int):
            raise OSError(refusal, "refused")
        return whole(src, dst, min(count, 3_000_000), src_at, dst_at)

    if refusal == "absent":
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", limited)
    writer, start = begin(tmp_path, 19_000_000)
    with FileReader(tmp_path / "source") as reader:
        writer.copy_from(reader, 1000, start, 19_000_000)
    writer.finish()
    written = (tmp_path / "out.safetensors").read_bytes()
    assert written[start:] == content[1000:19_001_000]
    assert len(calls) == {None: 7, "absent": 0}.get(refusal, 3)


def test_copies_from_a_reader_without_a_file(tmp_path: Path, content: bytes) -> None:
    writer, start = begin(tmp_path, 19_000_000)
    writer.copy_from(MemoryReader(content), 5, start, 19_000_000)
    writer.copy_from(MemoryReader(content), 5, start, 0)
    writer.finish()
    assert (tmp_path / "out.safetensors").read_bytes()[start:] == content[5:19_000_005]


def test_a_source_that_ends_early_is_damage(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(100))
    writer, start = begin(tmp_path, 200)
    with (
        FileReader(tmp_path / "source") as reader,
        pytest.raises(DataError, match="ends at byte 100; 100 more"),
    ):
        writer.copy_from(reader, 0, start, 200)
    writer.discard()
    assert list(tmp_path.iterdir()) == [tmp_path / "source"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_found_when_the_file_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ResourceError) as caught:
        begin(tmp_path, 100)
    assert "no space left" in str(caught.value)
    assert "run the same command again to resume" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_reserve_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    writer, start = begin(tmp_path, 3)
    writer.write(b"abc", start)
    writer.finish()
    assert (tmp_path / "out.safetensors").read_bytes()[start:] == b"abc"


@pytest.mark.parametrize("call", ["pwrite", "copy_file_range", "fsync"])
def test_a_disk_that_fills_up_midway_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "source").write_bytes(bytes(100))
    writer, start = begin(tmp_path, 100)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with FileReader(tmp_path / "source") as reader:
        steps = {
            "pwrite": lambda: writer.write(b"abc", start),
            "copy_file_range": lambda: writer.copy_from(reader, 0, start, 100),
            "fsync": writer.finish,
        }
        with pytest.raises(ResourceError, match="run the same command again to resume"):
            steps[call]()
    assert not (tmp_path / "out.safetensors").exists()
    writer.discard()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    text, _, nbytes = header_text([], {})
    with pytest.raises(ResourceError, match=r"cannot write .*No such file"):
        ShardWriter(tmp_path / "no" / "x.partial", tmp_path / "no" / "x", text, nbytes)


def test_an_older_partial_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_bytes(bytes(5000))
    writer, start = begin(tmp_path, 3)
    writer.write(b"abc", start)
    writer.finish()
    assert (tmp_path / "out.safetensors").stat().st_size == start + 3


def test_a_file_that_grew_past_its_plan_does_not_appear(tmp_path: Path) -> None:
    writer, start = begin(tmp_path, 3)
    writer.write(b"abcd", start)
    with pytest.raises(DataError, match="planned were"):
        writer.finish()
    assert not (tmp_path / "out.safetensors").exists()
    writer.close()


def test_the_disk_may_begin_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int, int]] = []
    call = writer_module._sync_file_range()
    assert call is not None, "Linux has it"

    def told(descriptor: int, start: int, nbytes: int, flags: int) -> int:
        calls.append((start, nbytes, flags))
        return int(call(descriptor, start, nbytes, flags))

    monkeypatch.setattr(writer_module, "_sync_file_range", lambda: told)
    writer, start = begin(tmp_path, 9000)
    writer.write(bytes(5000), start)
    writer.begin_sync(0, start + 5000)
    writer.write(bytes(range(250)) * 16, start + 5000)
    # What is not there yet, and what lies past the end, are no mistakes.
    writer.begin_sync(start + 5000, 1 << 40)
    writer.sync()
    writer.finish()
    assert calls == [(0, start + 5000, 2), (start + 5000, 1 << 40, 2)]
    stored = (tmp_path / "out.safetensors").read_bytes()
    assert stored[start:] == bytes(5000) + bytes(range(250)) * 16


def test_a_closed_file_has_nothing_to_begin_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, start = begin(tmp_path, 10)
    writer.write(bytes(10), start)
    writer.finish()
    monkeypatch.setattr(writer_module, "_sync_file_range", lambda: pytest.fail("called"))
    writer.begin_sync(0, 10)
    other, _ = begin(tmp_path, 10, "other")
    other.discard()
    other.begin_sync(0, 10)


def test_a_system_that_cannot_begin_early_does_all_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    writer_module._sync_file_range.cache_clear()
    try:
        assert writer_module._sync_file_range() is None
        writer, start = begin(tmp_path, 10)
        writer.write(bytes(range(10)), start)
        writer.begin_sync(0, start + 10)
        writer.finish()
    finally:
        writer_module._sync_file_range.cache_clear()
    assert (tmp_path / "out.safetensors").read_bytes()[start:] == bytes(range(10))


def test_a_refusal_to_begin_early_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_sync_file_range", lambda: lambda *args: -1)
    writer, start = begin(tmp_path, 10)
    writer.write(bytes(range(10)), start)
    writer.begin_sync(0, start + 10)
    writer.finish()
    assert (tmp_path / "out.safetensors").read_bytes()[start:] == bytes(range(10))
