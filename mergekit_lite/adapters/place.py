"""A folder that is made beside its place and appears there complete, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mergekit_lite.adapters.lock import Making, write_lock
from mergekit_lite.engine.events import Event
from mergekit_lite.export.exclusive import only_run
from mergekit_lite.export.finish import put_in_place, remove_replaced, sync_tree
from mergekit_lite.export.target import check_target, partial_folder


@contextmanager
def making(
    made: Making, out: Path, *, overwrite: bool, emit: Callable[[Event], None]
) -> Iterator[Path]:
    """Give the folder to work in, and put it in place with its lock once all is done.

    What an earlier call has left is thrown away; when something goes wrong, nothing is left.

    Args:
        made: by what and from what; the output must stay clear of the inputs.
        out: final folder.
        overwrite: replace a folder that looks like a model or an adapter.
        emit: told what the user should know.

    Raises:
        RecipeError: the output folder does not fit, or another run is working on it.
        SourceError, DataError: an input has gone or changed its size meanwhile.
    """
    out = out.expanduser().resolve()
    check_target(made.plan, out, overwrite=overwrite, fresh=True)
    work = partial_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with only_run(work, emit):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield work
            write_lock(made, work)
            sync_tree(work)
            put_in_place(work, out, overwrite=overwrite)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    remove_replaced(out)
