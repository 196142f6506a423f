"""`mergekit-lite run`: merge the models of a recipe into a folder."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note

if TYPE_CHECKING:
    from mergekit_lite.engine.options import Report
    from mergekit_lite.plan.types import Plan
    from mergekit_lite.quality.expected import Expected
    from mergekit_lite.recipe import Recipe


@click.command(short_help="Merge the models of a recipe into a folder.")
@parameters.recipe
@parameters.out("Folder to make; needed but for a dry run.")
@parameters.changes
@parameters.shard_size
@parameters.threads
@parameters.max_memory
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "auto"]),
    default="cpu",
    show_default=True,
    help="Where the arithmetic runs; the bytes are the same.",
)
@click.option(
    "--check/--no-check",
    default=None,
    help="Check the bounds of `expect`, which is done anyway where there are any; with --check, "
    "-o may be left out, and the model is removed afterwards.",
)
@click.option(
    "--junit",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write what was checked as JUnit XML, for CI.",
)
@click.option("--dry-run", is_flag=True, help="Check and size everything; write nothing.")
@click.option("--fresh", is_flag=True, help="Discard what an interrupted run has left.")
@click.option("--overwrite", is_flag=True, help="Replace an output folder that holds a model.")
@click.option("--allow-nonfinite", is_flag=True, help="Let NaN and infinities pass.")
@click.option("--quiet", is_flag=True, help="No progress; errors only.")
@click.option(
    "--log-format",
    type=click.Choice(["plain", "json"]),
    default="plain",
    show_default=True,
    help="Progress and errors for people, or one JSON object a line.",
)
@parameters.as_json
def command(
    recipe: Path,
    out: Path | None,
    changes: tuple[str, ...],
    shard_size: str | None,
    check: bool | None,
    junit: Path | None,
    dry_run: bool,
    quiet: bool,
    log_format: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Merge the models of RECIPE into a folder.

    The folder appears complete or not at all. A run that was interrupted is taken up where it
    stopped by the same command.

    \b
    Examples:
      mergekit-lite run recipe.yaml -o merged
      mergekit-lite run recipe.yaml -o merged --set steps.0.ties.density=0.3 --max-memory 2GB
      mergekit-lite run recipe.yaml --check --junit quality.xml
    """
    from mergekit_lite import api
    from mergekit_lite.cli._progress import ProgressSink, choose_style

    if out is None and not dry_run and not check:
        raise click.UsageError("name the folder to make with -o/--out, or give --dry-run")
    loaded = api.load(recipe, parameters.all_changes(changes, shard_size), models=True)
    wanted = _wanted(loaded, check)
    if out is None and not dry_run:
        with TemporaryDirectory(prefix="mergekit-lite-check-") as folder:
            out = Path(folder) / "merged"
            api.run(loaded, out, **options)
            _check(wanted, out, options, junit)
        click.echo(f"{recipe}: all bounds hold")
        return
    if dry_run or out is None:
        _dry_run(api.plan(loaded), out, as_json=as_json, options=options)
        return
    style = choose_style(log_format, quiet, sys.stderr)
    signal.signal(signal.SIGTERM, _interrupt)
    with ProgressSink(style) as emit:
        report = api.run(loaded, out, emit=emit, **options)
    if style in ("bar", "lines"):
        _tell(report, base_of(loaded), out)
    if as_json:
        click.echo((out / "merge_report.json").read_text(encoding="utf-8").rstrip())
    else:
        click.echo(str(out))
    if wanted is not None:
        _check(wanted, out, options, junit)


def _wanted(recipe: Recipe, check: bool | None) -> Expected | None:
    """Return what the recipe expects, read before the merge begins; None where nothing is checked.

    Raises:
        RecipeError, DataError, SourceError: it cannot be checked.
    """
    if recipe.expect is None and check:
        raise click.UsageError(f"`{recipe.name}` has no `expect` to check")
    if recipe.expect is None or check is False:
        return None
    from mergekit_lite.quality.expected import expected

    return expected(recipe)


def _check(wanted: Expected | None, out: Path, options: dict[str, Any], junit: Path | None) -> None:
    """Score the result and tell what came of every bound; the model stays where it is.

    Raises:
        DataError: a bound fell.
    """
    from mergekit_lite.cli._scores import tell_verdicts, write_junit
    from mergekit_lite.engine.shard import chosen_device
    from mergekit_lite.quality.expected import check
    from mergekit_lite.quality.forward import Settings

    if wanted is None:
        return
    settings = Settings(device=chosen_device(options["device"]), max_memory=options["max_memory"])
    _, verdicts = check(wanted, out, settings, tell=note)
    write_junit(verdicts, junit, f"run {wanted.recipe.name}")
    tell_verdicts(verdicts)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # A cluster that preempts a job sends SIGTERM; it deserves the same orderly stop as Ctrl-C.
    raise KeyboardInterrupt


def _dry_run(ready: Plan, out: Path | None, *, as_json: bool, options: dict[str, Any]) -> None:
    from mergekit_lite.cli.plan import show
    from mergekit_lite.export.target import check_target

    if out is not None:
        target = out.expanduser().resolve()
        check_target(ready, target, overwrite=options["overwrite"], fresh=options["fresh"])
    show(
        ready,
        threads=options["threads"],
        max_memory=options["max_memory"],
        device=options["device"],
        out=out,
        as_json=as_json,
    )


def base_of(recipe: Recipe) -> str:
    """Return what the base is called from here: a path below the current folder, or a whole one.

    What leads to no file from the recipe's folder is no path, and the same from everywhere.
    """
    from mergekit_lite.plan.stages import is_stage
    from mergekit_lite.recipe.stages import SIGN
    from mergekit_lite.sources.local import local_path

    base = recipe.base
    while is_stage(base):
        base = recipe.stages[base.removeprefix(SIGN)].base
    path = local_path(base, recipe.folder)
    if not path.exists():
        return base
    here = Path.cwd()
    # A link's own name is kept: names in a download cache are hashes.
    target = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
    return str(target.relative_to(here) if target.is_relative_to(here) else target)


def _tell(report: Report, base: str, out: Path) -> None:
    """Say what the experts gave and what to do next, on stderr."""
    from mergekit_lite.plan.names import plural

    for name, seen in report.inputs.items():
        text = f"{name}: {plural(seen.matched, 'tensor')} matched"
        if seen.measured:
            text += f", {seen.changed} changed, norm of its delta {seen.delta_norm:.4g}"
        note(text)
    note(f"next: {shlex.join(['mergekit-lite', 'verify', str(out)])}")
    note(f"      {shlex.join(['mergekit-lite', 'diff', base, str(out)])}")
