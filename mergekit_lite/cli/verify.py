"""`mergekit-lite verify`: recheck a merged folder against its lock file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import print_json
from mergekit_lite.cli._reading import reading
from mergekit_lite.errors import DataError, SourceError


@click.command(short_help="Recheck a merged folder against its lock file.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--inputs", is_flag=True, help="Recheck the inputs that the lock names as well.")
@click.option(
    "--relative-to",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder that the lock's relative references start from: that of the recipe. "
    "Default: the current one.",
)
@click.option(
    "--weights",
    is_flag=True,
    help="Look at the numbers too: NaN, layers of zeros; with --inputs also what base and experts "
    "tell of them.",
)
@parameters.as_json
def command(folder: Path, inputs: bool, relative_to: Path, weights: bool, as_json: bool) -> None:
    """Recheck a merged FOLDER: size and sha256 of every file, index, config, stray weights.

    README.md is left out: a card may be edited. Of merge_report.json, all but the times of the run
    is checked. Where the inputs are missing and all else is sound, the exit code is 5.

    With --weights and --inputs these are told as well: tensors that are another of the base's, a
    shifted vocabulary, rotary embeddings of another base, experts of which nothing was merged.

    \b
    Examples:
      mergekit-lite verify merged
      mergekit-lite verify merged --inputs --relative-to recipes
    """
    from mergekit_lite.export.verify import MissingInput, verify
    from mergekit_lite.plan.lock import LOCK_FILE, read_lock
    from mergekit_lite.sources import resolve

    files = (path for path in folder.rglob("*") if path.is_file())
    with reading(sum(path.stat().st_size for path in files)) as progress:
        problems = verify(folder, inputs=inputs, relative_to=relative_to, progress=progress)
        if weights:
            from mergekit_lite.quality.faults import faults_of_output

            lock, origin = read_lock(folder / LOCK_FILE), relative_to if inputs else None
            model = resolve(str(folder), relative_to=Path())
            problems += faults_of_output(model, lock, origin, progress)
    missing = all(isinstance(problem, MissingInput) for problem in problems)
    failure = SourceError(problems) if missing else DataError(problems)
    if as_json:
        print_json({"folder": str(folder), "problems": [asdict(p) for p in problems]})
        raise click.exceptions.Exit(failure.exit_code if problems else 0)
    if problems:
        raise failure
    click.echo(f"{folder}: sound")
