"""What a running merge tells those who watch it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["start", "sweep", "progress", "shard", "note", "done"]

TICK_SECONDS = 0.25
"""How often progress is told at most."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened during a run; the last cross-room value besides the plan.

    Attributes:
        kind: `start` and `done` frame a run; `progress` comes several times a second at most;
            `shard` says that a shard is complete; `note` carries a sentence for the user; `sweep`
            comes like `progress` while statistics of the whole model are gathered, before `start`.
        bytes_read: bytes read so far, of this run alone.
        bytes_written: bytes written so far, of this run alone.
        bytes_total: bytes that this run will write; how far it has come is measured by them. Of a
            `sweep`, those that it is expected to read, with `bytes_read` for this sweep alone.
        shard: number of the shard in hand, or just completed, counted from 1.
        shards: number of shards of the output.
        name: the tensor in hand, or the file just completed.
        text: the sentence of a note; of a `sweep`, the ops that want to know.
        seconds: since the start of the run, or of the sweep.
    """

    kind: Kind
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_total: int = 0
    shard: int = 0
    shards: int = 0
    name: str = ""
    text: str = ""
    seconds: float = 0.0
