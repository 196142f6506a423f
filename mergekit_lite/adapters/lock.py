"""The lock of an adapter that was made by a verb: what went in, what it was told, what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.plan.digests import DigestCache, file_sha256
from mergekit_lite.plan.lock import LOCK_FILE, input_digests, lock_inputs, lock_outputs, lock_text
from mergekit_lite.plan.types import Plan

if TYPE_CHECKING:
    from mergekit_lite.sources import Model


@dataclass(frozen=True)
class Making:
    """What an adapter is made by and from.

    Attributes:
        verb: of the command line, such as `extract-lora`.
        parameters: all that decides the bytes beside the inputs.
        plan: names the inputs, which the output must also stay clear of.
        models: its inputs, opened.
        statistics: files that are read beside them, by the name they were given by.
    """

    verb: str
    parameters: Mapping[str, Any]
    plan: Plan
    models: Mapping[str, Model]
    statistics: Mapping[str, Path] = field(default_factory=dict)


def write_lock(made: Making, folder: Path) -> None:
    """Write `recipe.lock.yaml` beside the files of a folder, which are all there.

    Raises:
        SourceError, DataError: an input has gone or changed its size meanwhile.
    """
    cache = DigestCache()
    lock = lock_inputs(made.plan, input_digests(made.plan, cache, models=made.models))
    cache.save()
    lock["made_by"] = {"verb": made.verb, "parameters": dict(made.parameters)}
    if made.statistics:
        lock["statistics"] = {
            name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
            for name, path in made.statistics.items()
        }
    found = (path for path in folder.rglob("*") if path.is_file())
    files = sorted(path.relative_to(folder).as_posix() for path in found)
    outputs = lock_outputs(lock, folder, {name: file_sha256(folder / name) for name in files})
    (folder / LOCK_FILE).write_text(lock_text(outputs), encoding="utf-8")
