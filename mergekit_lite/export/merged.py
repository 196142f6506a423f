"""Before and after experts are merged: what has to be made first, and what the manifest says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.checkpoint import read_checkpoint
from mergekit_lite.checkpoint.header import header_text
from mergekit_lite.checkpoint.writer import ShardWriter
from mergekit_lite.engine.events import Event
from mergekit_lite.errors import MergekitLiteError
from mergekit_lite.export.pruned import statistic_sums
from mergekit_lite.plan.types import GATE, Plan
from mergekit_lite.sources import Model, resolve

if TYPE_CHECKING:
    from mergekit_lite.moe.merge.make import Maker

KINDS = ("rates", "merging")
"""Statistics that merging reads."""
_OF_PLAN = "mergekit_lite.plan"


def with_merged(
    plan: Plan,
    models: Mapping[str, Model],
    folder: Path,
    emit: Callable[[Event], None],
) -> dict[str, Model]:
    """Return the models with what merged experts need that no input has, made if it must be.

    Args:
        plan: of a routed model whose experts are merged.
        models: its inputs, opened.
        folder: where a file may be made.
        emit: called with events.
    """
    facts = plan.moe["merged"]
    emit(Event("note", text=merged_text(facts)))
    if not facts["made"]:
        return dict(models)
    from mergekit_lite.engine.expert_matrices import StoredExperts
    from mergekit_lite.moe.gate_file import GATE_FILE
    from mergekit_lite.moe.merge.make import Maker

    path, digest = folder / GATE_FILE, _digest(plan)
    if not _is_of(path, digest):
        folder.mkdir(parents=True, exist_ok=True)
        base = StoredExperts(models, plan.row_maps)
        try:
            maker = Maker(facts, Path(plan.folder), base)
            _write(path, maker, digest, emit)
        finally:
            base.close()
    made = resolve(str(path), relative_to=folder)
    return {**models, GATE: replace(made, reference=GATE)}


def _write(path: Path, maker: Maker, digest: str, emit: Callable[[Event], None]) -> None:
    """Write what is made, each as soon as it is there."""
    listed = [(made.name, "F32", made.shape) for made in maker.made]
    text, starts, nbytes = header_text(listed, {_OF_PLAN: digest})
    writer = ShardWriter(path.with_suffix(".partial"), path, text, nbytes)
    root = ""
    try:
        for (made, value), start in zip(maker.values(), starts, strict=True):
            if made.root != root:
                root = made.root
                emit(Event("note", text=f"`{root}`: neurons, routers and fits of merged experts"))
            writer.write(value.tobytes(), start)
        writer.finish()
    except BaseException:
        writer.discard()
        raise


def _digest(plan: Plan) -> str:
    """Return what is made depends on: the plan, and the statistics that it names."""
    digest = hashlib.sha256(plan.content_digest().encode())
    if stats := plan.moe["merged"]["merge"].get("stats"):
        for kind in KINDS:
            digest.update(repr(statistic_sums(Path(plan.folder), stats, kind)).encode())
    return digest.hexdigest()


def _is_of(path: Path, digest: str) -> bool:
    if not path.is_file():
        return False
    try:
        return read_checkpoint(path).metadata.get(_OF_PLAN) == digest
    except MergekitLiteError:
        return False


def merged_text(merged: Mapping[str, Any]) -> str:
    """Return what a card says of a model whose experts were merged."""
    modules = merged["modules"].values()
    first = next(iter(modules))
    groups = [group for module in modules for group in module["groups"]]
    alone = sum(group["experts"] == [group["lead"]] for group in groups)
    return (
        f"The {first['experts']} experts of each routed layer were merged to"
        f" {len(first['groups'])}, in groups chosen by `{merged['method']}`;"
        f" {alone} of all {len(groups)} groups are one expert as it was."
        " `moe_manifest.json` says which."
    )


def merged_facts(plan: Plan) -> dict[str, Any]:
    """Return what the manifest of a model says whose experts were merged."""
    merged = plan.moe["merged"]
    facts = {key: merged[key] for key in ("merge", "method", "modules")}
    stats = merged["merge"].get("stats")
    if not stats:
        return facts
    sums = {kind: statistic_sums(Path(plan.folder), stats, kind) for kind in KINDS}
    return {**facts, "statistics": sums}
