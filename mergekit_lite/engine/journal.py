"""The journal of a run: which shards are done, so that an interruption costs at most one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from mergekit_lite.engine.options import ShardDone
from mergekit_lite.errors import RecipeError
from mergekit_lite.plan.types import Plan

JOURNAL = "journal.jsonl"


class Journal:
    """Append-only record in the unfinished output folder: one line a finished shard.

    Args:
        folder: the unfinished output folder.
        plan: the plan that is being run; its digest is the journal's first line.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.path = folder / JOURNAL
        self.folder = folder
        self.plan = plan

    def resume(self) -> list[ShardDone]:
        """Return the shards that an earlier run of the same plan finished and that are intact.

        Raises:
            RecipeError: the folder holds an unfinished run of another plan.
        """
        if not self.path.exists():
            self._append({"plan": self.plan.content_digest()})
            return []
        lines = self._lines()
        first = next(lines, None)
        if first is None or first.get("plan") != self.plan.content_digest():
            raise RecipeError(
                "an unfinished run of another recipe is in the way",
                where=self.folder.name,
                hint="finish it with its own recipe, or pass --fresh to throw it away",
            )
        done = {}
        for line in lines:
            shard = ShardDone.from_data(line)
            path = self.folder / shard.file
            if path.is_file() and path.stat().st_size == shard.nbytes:
                done[shard.shard] = shard
        return [shard for shard in done.values() if self._intact(shard)]

    def add(self, shard: ShardDone) -> None:
        """Record a shard whose file is complete and on the disk."""
        self._append(shard.to_data())

    def remove(self) -> None:
        """Delete the journal: the folder is complete."""
        self.path.unlink(missing_ok=True)

    def _intact(self, shard: ShardDone) -> bool:
        return sha256_of(self.folder / shard.file) == shard.sha256

    def _lines(self) -> Iterator[dict[str, object]]:
        for line in self.path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return  # the last line of a run that was killed while writing it

    def _append(self, data: object) -> None:
        text = (json.dumps(data, sort_keys=True) + "\n").encode()
        # A torn last line must not swallow the next one.
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("ab") as file:
            file.write(b"\n" + text if torn and self.path.stat().st_size else text)
            file.flush()
            os.fsync(file.fileno())


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
