"""One run at a time in a working folder."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mergekit_lite.engine.events import Event
from mergekit_lite.errors import RecipeError

_HELD = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def lock_file(work: Path) -> Path:
    """Return the file that is locked while a run works in `work`; it lies beside that folder."""
    return work.with_name(f"{work.name}.lock")


@contextmanager
def only_run(work: Path, emit: Callable[[Event], None]) -> Iterator[None]:
    """Keep every other run out of the working folder `work`.

    The system gives the lock back when this process ends, however it ends; the file that a killed
    one leaves is taken over by the next run.

    Args:
        work: working folder; need not exist, but what it lies in must.
        emit: told where the file system has no locks; the run then goes on without.

    Raises:
        RecipeError: another run holds it.
    """
    path = lock_file(work)
    handle = _lock(path, work)
    if handle is None:
        text = "warning: this file system has no locks; let no other run work in the same folder"
        emit(Event("note", text=f"{text}: {work}"))
        yield
        return
    try:
        yield
    finally:
        # Removed while it is still held: who opens it from now on makes a new one, and who has
        # opened it before finds that it is no longer the file of this name.
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def _lock(path: Path, work: Path) -> int | None:
    """Return the locked file; None where there are no locks."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(handle, path):
                _sign(handle)
                return handle
        except OSError as error:
            try:
                if error.errno in _HELD:
                    raise _refusal(handle, work) from None
                if error.errno not in _NO_LOCKS:
                    raise
                path.unlink(missing_ok=True)
            finally:
                os.close(handle)
            return None
        os.close(handle)


def _is_file(handle: int, path: Path) -> bool:
    """Return whether the open file is still the one of that name; its owner may have removed it."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _sign(handle: int) -> None:
    # Only for the message that others get, so a full disk is left to the run to find.
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} {platform.node()}\n".encode(), 0)


def _refusal(handle: int, work: Path) -> RecipeError:
    process, _, host = os.pread(handle, 300, 0).decode(errors="replace").strip().partition(" ")
    where = f" on {host}" if host and host != platform.node() else ""
    who = f"another run (process {process}{where})" if process else "another run"
    hint = "wait for it to end, or choose another folder"
    return RecipeError(f"{who} is working in `{work}`", work.name, hint)
