"""The journal of a run: which shards are done, so that an interruption costs at most one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mergekit_lite.engine.options import ShardDone
from mergekit_lite.errors import RecipeError
from mergekit_lite.plan.statistic_files import statistic_files
from mergekit_lite.plan.types import Plan

JOURNAL = "journal.jsonl"


class Journal:
    """Append-only record in the unfinished output folder: one line a finished shard.

    Args:
        folder: the unfinished output folder.
        plan: the plan that is being run; its digest and its inputs' identities are the journal's
            first line.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.path = folder / JOURNAL
        self.folder = folder
        self.plan = plan

    def resume(self) -> list[ShardDone]:
        """Return the shards that an earlier run of the same plan finished and that are intact.

        Raises:
            RecipeError: the folder holds an unfinished run of another plan, or of other inputs.
        """
        lines = list(self._lines())
        if not lines:
            # None yet, or killed while its first line was written.
            self._append({"plan": self.plan.content_digest(), "inputs": identities(self.plan)})
            return []
        self._check(lines[0])
        done = {shard.shard: shard for shard in map(self._shard, lines[1:]) if shard}
        return [shard for shard in done.values() if self._intact(shard)]

    def is_of_plan(self) -> bool:
        """Return whether there is a journal, of the same plan."""
        first = next(self._lines(), {})
        return first.get("plan") == self.plan.content_digest()

    def add(self, shard: ShardDone) -> None:
        """Record a shard whose file is complete and on the disk."""
        self._append(shard.to_data())

    def remove(self) -> None:
        """Delete the journal: the folder is complete."""
        self.path.unlink(missing_ok=True)

    def _check(self, first: Mapping[str, Any]) -> None:
        """Raise RecipeError unless this first line of a journal is of the same run."""
        if first.get("plan") != self.plan.content_digest():
            raise RecipeError(
                "an unfinished run of another plan (another recipe or shard size) is in the way",
                where=self.folder.name,
                hint="finish it with its own recipe, or pass --fresh to throw it away",
            )
        before, now = first.get("inputs", {}), identities(self.plan)
        changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if changed:
            raise RecipeError(
                f"the inputs changed since the interrupted run: {', '.join(changed)}",
                where=self.folder.name,
                hint="pass --fresh to throw away what was made of the old ones",
            )

    def _shard(self, line: Mapping[str, Any]) -> ShardDone | None:
        """Return the shard that a line speaks of, or None where it speaks of none of the plan."""
        try:
            shard = ShardDone.from_data(line)
            named = shard.shard >= 0 and self.plan.shards[shard.shard].file == shard.file
            return shard if named else None
        except (AttributeError, LookupError, TypeError):
            return None

    def _intact(self, shard: ShardDone) -> bool:
        path = self.folder / shard.file
        if not path.is_file() or path.stat().st_size != shard.nbytes:
            return False
        return sha256_of(path) == shard.sha256

    def _lines(self) -> Iterator[dict[str, Any]]:
        for line in self.path.read_bytes().splitlines() if self.path.exists() else ():
            # A run that was killed while writing leaves a torn line, and others may follow it; a
            # machine that lost its power may leave any bytes.
            with contextlib.suppress(ValueError):
                data = json.loads(line)
                if isinstance(data, dict):
                    yield data

    def _append(self, data: object) -> None:
        text = (json.dumps(data, sort_keys=True) + "\n").encode()
        # A torn last line must not swallow the next one.
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("ab") as file:
            file.write(b"\n" + text if torn and self.path.stat().st_size else text)
            file.flush()
            os.fsync(file.fileno())


def identities(plan: Plan) -> dict[str, list[int]]:
    """Return [size, time of the last change in ns] of every file read that lies on a disk."""
    found = {}
    for name, source in plan.leaves.items():
        root = Path(source.root)
        for file in sorted(source.files):
            path = root if root.is_file() else root / file
            if path.is_file():
                status = path.stat()
                found[f"{name}/{file}"] = [status.st_size, status.st_mtime_ns]
    for name, path in statistic_files(plan).items():
        if path.is_file():
            status = path.stat()
            found[name] = [status.st_size, status.st_mtime_ns]
    return found


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
