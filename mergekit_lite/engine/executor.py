"""The seam for other ways to run shards: another machine, another scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mergekit_lite.engine.options import Options, ShardDone
from mergekit_lite.engine.shard import Emit
from mergekit_lite.errors import RecipeError, nearest
from mergekit_lite.plan.types import Plan
from mergekit_lite.registered import entry_points

if TYPE_CHECKING:
    from mergekit_lite.sources import Model


class Executor(Protocol):
    """Computes shards and says which are done, in any order.

    Third parties register a class under the entry point group `mergekit_lite.executors`. Each
    shard has one owner; `engine.shard.write_shard` computes one from a plan and a folder. The
    caller alone keeps the journal and completes the folder.
    """

    def run(
        self,
        plan: Plan,
        models: Mapping[str, Model],
        shards: Sequence[int],
        folder: Path,
        options: Options,
        emit: Emit,
    ) -> Iterator[ShardDone]:
        """Yield each of `shards` once its file is complete in `folder`."""
        ...


def executor_named(name: str) -> Executor:
    """Return a new executor: `local`, or one that an installed package registers.

    Raises:
        RecipeError: no executor has that name.
    """
    from mergekit_lite.engine.local import LocalExecutor

    if name == "local":
        return LocalExecutor()
    found = {entry.name: entry for entry in entry_points(group="mergekit_lite.executors")}
    if name not in found:
        hint = nearest(name, ["local", *found]) or f"known: {', '.join(['local', *found])}"
        raise RecipeError(f"unknown executor `{name}`", hint=hint)
    entry = found[name]
    try:
        executor: Executor = entry.load()()
    except Exception as error:
        raise RecipeError(
            f"the executor `{name}` ({entry.value}) cannot be loaded: {error}",
            hint="update or remove the package that registers it",
        ) from error
    return executor
