"""From shards in a working folder to a model that is there as a whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_lite.engine.journal import JOURNAL, Journal
from mergekit_lite.errors import DataError, Problem, RecipeError
from mergekit_lite.export.card import write_card
from mergekit_lite.export.code_files import write_code
from mergekit_lite.export.components import correct_dtypes
from mergekit_lite.export.config import CONFIG_FILE, write_adapter_config, write_config
from mergekit_lite.export.gates import write_manifest
from mergekit_lite.export.manifest import report_data, write_index, write_lock, write_report
from mergekit_lite.export.target import partial_folder
from mergekit_lite.export.tokenizer import write_companions
from mergekit_lite.plan.digests import file_sha256
from mergekit_lite.plan.types import Plan

if TYPE_CHECKING:
    from mergekit_lite.engine.options import Report
    from mergekit_lite.sources import Model


def finish(
    plan: Plan,
    models: Mapping[str, Model],
    report: Report,
    out: Path,
    *,
    input_digests: Mapping[str, Mapping[str, str]],
    overwrite: bool = False,
) -> None:
    """Complete the working folder of `out`, which holds all shards, and put it in place.

    The index comes last: a folder with an index is complete.

    Args:
        plan: what was run.
        models: its inputs; `base` is the donor of every other file.
        report: what the engine saw; its `shards` hold the size and sha256 of each shard.
        out: final folder.
        input_digests: input -> weight file -> sha256, for the lock.
        overwrite: replace a folder that is there.
    """
    work = partial_folder(out)
    root = models["base"].root
    _keep_only(work, report.shards)
    if plan.adapter:
        written = [write_adapter_config(plan, work)]
    else:
        written = write_companions(plan, models, work)
        correct_dtypes(plan, work)
        if write_config(plan, root, work):
            written.append(CONFIG_FILE)
        written += write_code(plan, work)
        written += write_manifest(plan, out, work)
    write_card(plan, models, report, work)
    outputs = {file: digest for file, (_, digest) in report.shards.items()}
    outputs |= {file: file_sha256(work / file) for file in written}
    told = report_data(plan, report)
    write_report(told, work)
    write_lock(plan, input_digests, outputs, told, work)
    write_index(plan, work)
    sync_tree(work)
    _require_sizes(work, report.shards)
    put_in_place(work, out, overwrite=overwrite)
    _sync(out.parent)
    # Until the folder stands, the journal is what a next run goes by.
    Journal(out, plan).remove()


def take_back(plan: Plan, out: Path) -> None:
    """Make a working folder again of one that was put in place by a run killed right then.

    Only the run of the same plan does so; it finds all shards done and ends what was begun.
    """
    work = partial_folder(out)
    if Journal(out, plan).is_of_plan() and not work.exists():
        out.rename(work)


def remove_replaced(out: Path) -> None:
    """Remove the folder that was put aside; no other run is hindered any more."""
    aside = _aside(out)
    if aside.exists():
        shutil.rmtree(aside)


def _require_sizes(work: Path, shards: Mapping[str, tuple[int, str]]) -> None:
    problems = []
    for file, (wrote, _) in shards.items():
        path = work / file
        found = path.stat().st_size if path.is_file() else 0
        if found != wrote:
            what = f"has {found:,} bytes, the run wrote {wrote:,}: something else has changed it"
            hint = "run the same command again to make it anew"
            problems.append(Problem(what, str(path), hint))
    if problems:
        raise DataError(problems)


def _keep_only(work: Path, shards: Collection[str]) -> None:
    """Remove all but the shards and the journal: what a run in between has left or needed.

    Loaders would take the shards of another plan for part of the model.
    """
    for here, folders, files in os.walk(work, topdown=False):
        for name in files:
            path = Path(here) / name
            if path.relative_to(work).as_posix() not in shards and path != work / JOURNAL:
                path.unlink()
        for name in folders:
            path = Path(here) / name
            if path.is_symlink():
                path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()


def sync_tree(folder: Path) -> None:
    """Wait until every file and folder below `folder` has reached the disk."""
    for here, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(here) / name)
        _sync(Path(here))


def put_in_place(work: Path, out: Path, *, overwrite: bool) -> None:
    """Rename `work` to `out`; what was there is put aside for `remove_replaced`.

    Raises:
        RecipeError: `out` has been filled while the merge ran, and may not be replaced.
    """
    aside = _aside(out)
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            hint = f"the merge is complete in `{work}`; move it where you want it"
            raise RecipeError("the output folder was filled during the run", str(out), hint)
        shutil.rmtree(aside, ignore_errors=True)
        out.rename(aside)
    work.rename(out)


def _aside(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
