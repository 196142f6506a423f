"""Writes one weight file at planned offsets, and lets it appear only when it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_lite.checkpoint.reader import Reader, aligned_buffer, byte_view
from mergekit_lite.errors import DataError, MergekitLiteError, ResourceError

if TYPE_CHECKING:
    from mergekit_lite.checkpoint.reader import AnyBuffer

COPY_BLOCK = 8 << 20
"""Bytes per step where a copy has to pass through memory."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What kernels and file systems answer when they cannot copy between two files by themselves.
_NO_KERNEL_COPY = {
    errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM,
    errno.ETXTBSY, errno.EIO,
}  # fmt: skip


class ShardWriter:
    """A weight file under construction. Safe to write to from several threads.

    The header is written first and the space reserved; `finish` makes the file appear.

    Args:
        path_partial: where the bytes go until then; an older file there is replaced.
        final_path: the name under which the complete file appears, on the same file system.
        header_text: the padded JSON of `header_text`; its 8-byte length is put before it.
        nbytes: size of the whole file.

    Raises:
        ResourceError: the disk is full, read only or refuses the file.
    """

    def __init__(
        self, path_partial: str | Path, final_path: str | Path, header_text: str, nbytes: int
    ) -> None:
        self.path = Path(path_partial)
        self.final_path = Path(final_path)
        self.nbytes = nbytes
        self._descriptor = -1
        self._unsynced: OSError | None = None
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0)
        try:
            self._descriptor = os.open(self.path, flags, 0o666)
            _reserve(self._descriptor, nbytes)
        except OSError as error:
            self.discard()
            raise self._failure(error) from error
        header = header_text.encode()
        self.write(len(header).to_bytes(8, "little") + header, 0)

    def write(self, view: AnyBuffer, offset: int) -> None:
        """Write all bytes of `view` from byte `offset` of the file on.

        Raises:
            ResourceError: the disk is full or reports an error.
        """
        try:
            _write_all(self._descriptor, view, offset)
        except OSError as error:
            raise self._failure(error) from error

    def copy_from(self, reader: Reader, src_offset: int, dst_offset: int, nbytes: int) -> None:
        """Copy `nbytes` bytes of an open weight file, inside the kernel where that works.

        Raises:
            DataError: the source ends early.
            ResourceError: the disk is full or reports an error.
        """
        done = 0
        if callable(fileno := getattr(reader, "fileno", None)):
            try:
                done = _kernel_copy(fileno(), self._descriptor, src_offset, dst_offset, nbytes)
            except OSError as error:
                raise self._failure(error) from error
        if done == nbytes:
            return  # without numpy, which buffers come from
        buffer = aligned_buffer(min(COPY_BLOCK, nbytes - done), src_offset + done)
        while done < nbytes:
            block = buffer[: nbytes - done]
            reader.read_into(block, src_offset + done)
            self.write(block, dst_offset + done)
            done += len(block)

    def begin_sync(self, start: int, nbytes: int) -> None:
        """Let the disk begin with bytes that have been written, without waiting for it.

        What is on the disk when the last tile is computed need not be waited for then. Where the
        system has no such call nothing happens, and `sync` has all to do.
        """
        if self._descriptor >= 0:
            _begin_writing(self._descriptor, start, nbytes)

    def sync(self) -> None:
        """Put the written bytes on the disk; `finish` reports what goes wrong."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            # Kept, because the system reports it once: the next fsync would succeed.
            self._unsynced = error

    def finish(self) -> None:
        """Put the bytes on the disk, then give the file its final name.

        Raises:
            DataError: the file has not the planned size.
            ResourceError: the disk is full or reports an error.
        """
        if self._unsynced is not None:
            raise self._failure(self._unsynced) from self._unsynced
        try:
            size = os.fstat(self._descriptor).st_size
            if size != self.nbytes:
                raise DataError(f"`{self.path}` has {size:,} bytes, planned were {self.nbytes:,}")
            os.fsync(self._descriptor)
            self.close()
            os.replace(self.path, self.final_path)
            _sync_folder(self.final_path.parent)
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close the file without finishing it; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def discard(self) -> None:
        """Close and remove the unfinished file."""
        opened = self._descriptor >= 0
        self.close()
        if opened:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _failure(self, error: OSError) -> MergekitLiteError:
        if error.errno in _FULL:
            return ResourceError(
                f"no space left for `{self.path}` ({self.nbytes:,} bytes): {error.strerror}",
                hint="make room, then run the same command again to resume",
            )
        return ResourceError(
            f"cannot write `{self.path}`: {error.strerror}",
            hint="check that the folder exists and may be written, "
            "then run the same command again to resume",
        )


def _begin_writing(descriptor: int, start: int, nbytes: int) -> None:
    if call := _sync_file_range():
        call(descriptor, start, nbytes, 2)  # SYNC_FILE_RANGE_WRITE; errors come with the fsync


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Return Linux's `sync_file_range(2)`, which the `os` module lacks."""
    import ctypes

    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return call


def _reserve(descriptor: int, nbytes: int) -> None:
    if nbytes > 0 and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
            return
        except OSError as error:
            # Some network and user-space file systems cannot reserve; they fail at the write.
            if error.errno in _FULL:
                raise
    os.ftruncate(descriptor, nbytes)


def _write_all(descriptor: int, data: AnyBuffer, offset: int) -> None:
    view = byte_view(data)
    done = 0
    # One call stops at 2,147,479,552 bytes on Linux, and anywhere on a signal or a full disk.
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)


def _kernel_copy(source: int, target: int, src: int, dst: int, nbytes: int) -> int:
    """Copy in the kernel; return how many bytes it took before it declined."""
    done = 0
    if not hasattr(os, "copy_file_range"):
        return done
    while done < nbytes:
        try:
            count = os.copy_file_range(source, target, nbytes - done, src + done, dst + done)
        except OSError as error:
            if error.errno in _NO_KERNEL_COPY:
                return done
            raise
        # Zero is the end of the file, or a file system that cannot: reading will tell which.
        if count == 0:
            return done
        done += count
    return done


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems refuse to sync a folder; their renames are already durable.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)
