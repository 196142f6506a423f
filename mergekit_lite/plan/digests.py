"""sha256 of whole files, remembered so that the same input is hashed only once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import DataError
from mergekit_lite.folders import cache_folder
from mergekit_lite.kernels import enabled

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

Stamp = tuple[int, int, int]
"""Size, modification time in ns and inode: what tells that a file is still the same."""

_MOST_ENTRIES = 10_000
CHUNK = 1 << 20


def cache_file() -> Path:
    """Return the file in which digests are remembered."""
    return cache_folder("digests.json")


def _load(file: Path) -> dict[str, tuple[Stamp, str]]:
    """Read the entries of a cache file; a missing or damaged one is an empty one."""
    try:
        raw = json.loads(file.read_text())
        return {
            str(path): ((int(size), int(modified), int(inode)), str(digest))
            for path, (size, modified, inode, digest) in raw.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


class DigestCache:
    """Digests of files by (real path, size, modification time, inode), kept in one JSON file.

    Args:
        file: the cache file; None takes `cache_file()`.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = cache_file() if file is None else file
        self._entries = _load(self.file)
        self._fresh: dict[str, tuple[Stamp, str]] = {}

    def get(self, path: str, stamp: Stamp) -> str | None:
        """Return the digest of `path` as it was with this `stamp`, or None."""
        known, digest = self._entries.get(path, ((-1, -1, -1), ""))
        return digest if known == stamp else None

    def put(self, path: str, stamp: Stamp, digest: str) -> None:
        self._entries[path] = self._fresh[path] = (stamp, digest)

    def save(self) -> None:
        """Write what is new; another process's entries are kept, an unwritable cache is left."""
        if not self._fresh:
            return
        # The newest entries come last, so the oldest are the ones that a full cache loses.
        entries = {**_load(self.file), **self._fresh}
        kept = dict(list(entries.items())[-_MOST_ENTRIES:])
        text = json.dumps({path: [*stamp, digest] for path, (stamp, digest) in kept.items()})
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self.file, text)
            self._fresh.clear()


def replace_text(file: Path, text: str) -> None:
    """Put a file with this text in place of one that may be there, whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}.")
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
        os.replace(temporary, file)
    except OSError:
        os.unlink(temporary)
        raise


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ino


@dataclass
class Reading:
    """A file that is being read to be hashed.

    Attributes:
        known: its digest, where that is remembered; nothing need be read then.
        read: fills a buffer with what comes next; returns how many bytes, 0 at the end.
        keep: remembers the digest of what has been read.
    """

    known: str | None
    read: Callable[[memoryview], int]
    keep: Callable[[str], None] = lambda digest: None


@contextlib.contextmanager
def reading_file(
    path: str | Path,
    cache: DigestCache | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Iterator[Reading]:
    """Open a file to be hashed; the arguments are those of `file_sha256`."""
    real = os.path.realpath(path)
    with open(real, "rb", buffering=0) as stream:
        before = _stamp(os.fstat(stream.fileno()))

        def read(buffer: memoryview) -> int:
            count = stream.readinto(buffer) or 0
            if progress and count:
                progress(count)
            return count

        def keep(digest: str) -> None:
            # A file written while it was read has no digest worth remembering.
            if cache and _stamp(os.fstat(stream.fileno())) == before:
                cache.put(real, before, digest)

        yield Reading(cache.get(real, before) if cache else None, read, keep)


@contextlib.contextmanager
def reading_model(
    model: Model,
    file: str,
    cache: DigestCache | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Iterator[Reading]:
    """Open a weight file of a model to be hashed; the arguments are those of `model_sha256`."""
    size = model.header.files[file]
    with contextlib.closing(model.open(file)) as reader:
        path = model.root if model.root.is_file() else model.root / file
        if hasattr(reader, "fileno") and path.is_file():
            opened = os.fstat(reader.fileno())
            if opened.st_size != size:
                raise changed_size(path, opened.st_size, size)
            if os.path.samestat(opened, path.stat()):
                with reading_file(path, cache, progress) as reading:
                    yield reading
                return
        done = 0

        def read(buffer: memoryview) -> int:
            nonlocal done
            part = buffer[: min(len(buffer), size - done)]
            if len(part):
                reader.read_into(part, done)
                done += len(part)
                if progress:
                    progress(len(part))
            return len(part)

        yield Reading(None, read)


def file_sha256(
    path: str | Path,
    cache: DigestCache | None = None,
    progress: Callable[[int], Any] | None = None,
) -> str:
    """Return the sha256 of a file's bytes, from the cache where the file has not changed.

    Args:
        path: the file.
        cache: where digests are remembered; None always reads the file.
        progress: called with the number of bytes of each chunk read.
    """
    with reading_file(path, cache, progress) as reading:
        return digest_of(reading)


def model_sha256(
    model: Model,
    file: str,
    cache: DigestCache | None = None,
    progress: Callable[[int], Any] | None = None,
) -> str:
    """Return the sha256 of a weight file of a model, wherever its source has the bytes.

    Args:
        model: whose file it is.
        file: its name in `model.header.files`.
        cache: where digests of real files are remembered.
        progress: called with the number of bytes of each chunk read.

    Raises:
        DataError: the file has another size than when its header was read.
    """
    with reading_model(model, file, cache, progress) as reading:
        return digest_of(reading)


def chunk() -> memoryview:
    """Return memory to read a chunk of a file into.

    It begins with a page, as what is read does: the system's copy into a few bytes behind the
    beginning of one, where larger `bytes` have theirs, takes five times as long.
    """
    return memoryview(mmap.mmap(-1, CHUNK))


def digest_of(reading: Reading) -> str:
    """Return the sha256 of what is read, and remember it."""
    if reading.known:
        return reading.known
    digest = hashlib.sha256()
    buffer = chunk()
    while count := reading.read(buffer):
        digest.update(buffer[:count])
    text = digest.hexdigest()
    reading.keep(text)
    return text


Opener = Callable[[], contextlib.AbstractContextManager[Reading]]
"""Opens a file to be hashed."""


def digests_of(
    files: Sequence[Opener], threads: int = 1, places: Sequence[int] | None = None
) -> list[str]:
    """Return the sha256 of every file, in order.

    Each thread hashes two at a time where the processor has instructions for it and the kernel
    has been compiled, which takes little more than half of the time.

    Args:
        files: to be hashed.
        threads: which hash at the same time.
        places: how many bytes of its model come before each file, where files are of models.
    """
    places = places or [0] * len(files)
    found: dict[int, str] = {}
    for number, opener in enumerate(files):
        with opener() as reading:
            if reading.known:
                found[number] = reading.known
    left = sorted((n for n in range(len(files)) if n not in found), key=places.__getitem__)
    openers = [files[number] for number in left]
    if len(left) > 1 and _can_pair():
        from mergekit_lite.plan.pairs import digests_in_pairs

        digests = digests_in_pairs(openers, threads, [places[number] for number in left])
        found |= zip(left, digests, strict=True)
    elif left:
        with ThreadPoolExecutor(threads) as pool:
            found |= zip(left, pool.map(_digest, openers), strict=True)
    return [found[number] for number in range(len(files))]


def _digest(opener: Opener) -> str:
    with opener() as reading:
        return digest_of(reading)


def _can_pair() -> bool:
    if not enabled():
        return False
    from mergekit_lite.kernels.sha256 import compress_two, is_possible

    return is_possible() and compress_two.is_compiled


def changed_size(path: Path, found: int, planned: int) -> DataError:
    """Return the error for an input that is no longer what was planned."""
    return DataError(
        f"the file has {found} bytes, and had {planned} when the merge was planned",
        where=str(path),
        hint="an input must not change while it is merged; run again",
    )
