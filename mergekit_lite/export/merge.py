"""A whole run: check where it goes, execute the plan, complete the folder, put it in place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.engine.events import Event
from mergekit_lite.engine.journal import JOURNAL
from mergekit_lite.errors import DataError
from mergekit_lite.export.exclusive import only_run
from mergekit_lite.export.finish import finish, remove_replaced, take_back
from mergekit_lite.export.gates import remove_gates, with_gates
from mergekit_lite.export.manifest import copies, warnings_of
from mergekit_lite.export.stages import remove_written, with_written, write_stages
from mergekit_lite.export.target import check_target, partial_folder
from mergekit_lite.plan.digests import DigestCache
from mergekit_lite.plan.estimate import estimate
from mergekit_lite.plan.lock import input_digests
from mergekit_lite.plan.ported import pairs_of
from mergekit_lite.plan.stages import leaf_models, within_memory
from mergekit_lite.plan.types import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mergekit_lite.engine.options import Options, Report
    from mergekit_lite.sources import Model

Digests = Mapping[str, Mapping[str, str]]


class _StoppedError(Exception):
    """Ends the hashing when the run has ended."""


def merge(
    plan: Plan,
    models: Mapping[str, Model],
    out: Path,
    options: Options,
    emit: Callable[[Event], None],
) -> Report:
    """Run `plan` into the folder `out`, which appears complete or not at all.

    Args:
        plan: what to run.
        models: the plan's inputs by name, opened.
        out: final folder; the work is done in `OUT.partial` beside it.
        options: how to run it.
        emit: called with events, from any thread.

    Raises:
        RecipeError: the output folder does not fit, or another run is working on it.
        ResourceError: disk or memory do not suffice.
        DataError, Interrupted: as the engine raises them; `OUT.partial` stays for the next run.
    """
    from mergekit_lite.engine.executor import executor_named
    from mergekit_lite.engine.local import execute
    from mergekit_lite.engine.shard import chosen_device

    out = out.expanduser().resolve()
    executor_named(options.executor)
    if out.name and (out / JOURNAL).exists():
        with only_run(partial_folder(out), emit):
            take_back(plan, out)
    check_target(plan, out, overwrite=options.overwrite, fresh=options.fresh)
    work = partial_folder(out)
    threads, limit, device = options.threads, options.max_memory, chosen_device(options.device)
    plan = within_memory(plan, threads=threads, max_memory=limit, device=device)
    estimate(plan, threads=threads, max_memory=limit, out=out, device=device)
    for warning in plan.warnings:
        emit(Event("note", text=f"warning: {warning}"))
    with ExitStack() as around:
        around.enter_context(_folders_above(out))
        around.enter_context(only_run(work, emit))
        # A run that has just ended may have left other files than were there before.
        check_target(plan, out, overwrite=options.overwrite, fresh=options.fresh)
        ready = write_stages(plan, models, out, options, emit, merge)
        ready = with_gates(plan, ready, out, options, emit)
        _check_patches(ready)
        doubts = _doubts(plan, ready)
        for doubt in doubts:
            emit(Event("note", text=f"warning: {doubt}"))
        hashing = around.enter_context(_hashing(plan, models, options))
        report = execute(plan, ready, work, options, emit)
        if not hashing.done():
            text = "waiting for the checksums of the inputs"
            emit(Event("note", text=text, seconds=report.seconds))
        digests = hashing.result()
        told = (*report.warnings, *doubts, *copies(plan, digests))
        report = replace(report, warnings=told, inputs=with_written(plan, out, report.inputs))
        for warning in warnings_of(plan, report):
            if warning in (*plan.warnings, *doubts):
                continue  # said before the run
            emit(Event("note", text=f"warning: {warning}", seconds=report.seconds))
        finish(
            plan,
            models,
            report,
            out,
            input_digests=digests,
            overwrite=options.overwrite,
        )
    remove_replaced(out)
    remove_written(plan, out)
    remove_gates(plan, out)
    return report


def _doubts(plan: Plan, models: Mapping[str, Model]) -> list[str]:
    """Return what makes patches of another base doubtful."""
    if not pairs_of(plan.recipe):
        return []
    from mergekit_lite.engine.ported import warnings_of_ported  # with numpy

    return warnings_of_ported(plan, models)


def _check_patches(models: Mapping[str, Model]) -> None:
    """Refuse damaged patches, and bases that patches were not made against."""
    if any(model.kind == "patch" or model.parts for model in models.values()):
        from mergekit_lite.engine.patch_base import check_patches  # with numpy

        check_patches(models)


@contextmanager
def _folders_above(out: Path) -> Iterator[None]:
    """Make the folders that `out` lies in; a run that leaves nothing takes its own away again."""
    made = [folder for folder in out.parents if not folder.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except DataError:
        for folder in made:
            with suppress(OSError):  # something else has been put there since
                folder.rmdir()
        raise


@contextmanager
def _hashing(
    plan: Plan, models: Mapping[str, Model], options: Options
) -> Iterator[Future[Digests]]:
    """Hash the inputs beside the run, which reads the same bytes into the page cache."""
    # As many as the cores, as these threads are all that is left to do when the merge is done.
    threads = min(options.workers, 2)
    stopped = threading.Event()

    def progress(_: int) -> None:
        if stopped.is_set():
            raise _StoppedError

    def hash_all() -> Digests:
        cache = DigestCache()
        digests = input_digests(
            plan, cache, models=leaf_models(models), threads=threads, progress=progress
        )
        cache.save()
        return digests

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest")
    future: Future[Any] = pool.submit(hash_all)
    try:
        yield future
    finally:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
