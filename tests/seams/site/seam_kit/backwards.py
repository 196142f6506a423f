"""A third party's executor: one shard after the other, the last one first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mergekit_lite.engine.events import Event
from mergekit_lite.engine.options import Options, ShardDone
from mergekit_lite.engine.shard import write_shard
from mergekit_lite.plan.types import Plan
from mergekit_lite.sources import Model


class Backwards:
    """Runs shards in reverse order, from a plan that went through JSON as to another machine."""

    def run(
        self,
        plan: Plan,
        models: Mapping[str, Model],
        shards: Sequence[int],
        folder: Path,
        options: Options,
        emit: Callable[[Event], None],
    ) -> Iterator[ShardDone]:
        sent = Plan.from_json(plan.to_json())
        for shard in reversed(shards):
            emit(Event("note", text=f"backwards: shard {shard}"))
            yield write_shard(sent, models, shard, folder, options, emit)
