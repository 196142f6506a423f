"""`mergekit-lite search`: find the parameters of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note, print_json

if TYPE_CHECKING:
    from mergekit_lite.quality.forward import Settings
    from mergekit_lite.search.run import Found
    from mergekit_lite.search.task import Task
    from mergekit_lite.search.trials import Trial


WITHOUT_MARKS = ("greedy", "adamerging")
"""Methods that choose what no mark of the recipe names."""


@click.command(short_help="Find the parameters of a recipe that validation data likes best.")
@parameters.recipe
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    required=True,
    help="Recipe to write, with the parameters that were found.",
)
@parameters.changes
@click.option(
    "--data",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Validation texts or questions, beside those of the recipe; may be repeated.",
)
@click.option(
    "--test",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Held-out data, on which the best candidate is scored once; may be repeated.",
)
@click.option(
    "--method",
    type=click.Choice(["tpe", "cmaes", "nsga2", "random", "greedy", "adamerging"]),
    default="tpe",
    show_default=True,
    help="How candidates are chosen; nsga2 keeps several objectives apart, greedy chooses experts, "
    "adamerging learns weights by layer.",
)
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=40,
    show_default=True,
    help="Candidates in all; those in the storage count.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Begin no further candidate after this time.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--storage",
    metavar="FILE|URL",
    help="Keep candidates here, such as search.log or sqlite:///search.db, and go on from it.",
)
@click.option(
    "--study", default="search", show_default=True, help="Name of the search in its storage."
)
@click.option(
    "--prune/--no-prune",
    default=True,
    help="Leave candidates that are worse than most after a part of the data.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Of adamerging: how often weights are changed.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=0.02,
    show_default=True,
    help="Of adamerging: how far they are changed at a time.",
)
@click.option(
    "--windows",
    type=click.IntRange(min=1),
    help="Most windows of a text, or questions of a file.  [default: 16]",
)
@click.option("--window-bytes", type=click.IntRange(min=1), help="Bytes of a window.")
@click.option(
    "--allow-test-data", is_flag=True, help="Choose by data that looks like a test set by its name."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write all candidates, and what is traded for what, as an HTML page.",
)
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@parameters.threads
@parameters.device
@parameters.pass_dtype
@parameters.max_memory
@parameters.as_json
def command(
    recipe: Path,
    out: Path,
    changes: tuple[str, ...],
    data: tuple[str, ...],
    test: tuple[str, ...],
    report: Path | None,
    overwrite: bool,
    windows: int | None,
    window_bytes: int | None,
    allow_test_data: bool,
    threads: int | None,
    device: str,
    dtype: str,
    max_memory: int | None,
    steps: int,
    rate: float,
    as_json: bool,
    **strategy: Any,
) -> None:
    """Find values for the parameters of RECIPE that are written {search: [low, high]}.

    Weights, parameters of ops and the `set` of rules may be ranges, {search: [0.1, 1], log: true}
    or {search: [0, 1], step: 0.1}, or lists, {choice: [mass, count]}. Each candidate is merged
    into a model in memory, without a checkpoint, and scored on validation data: what `search` in
    the recipe names, or --data. The best recipe is written with its scores.

    Two methods need no such marks. greedy adds one expert after the other, the best first, and
    keeps those with which the score holds. adamerging learns a weight for every expert and layer
    by making the predictions on the texts surer.

    \b
    Examples:
      mergekit-lite search recipe.yaml -o best.yaml --trials 60 --storage search.log
      mergekit-lite search recipe.yaml -o best.yaml --data de=de-validation.txt --test de=de.txt
    """
    from mergekit_lite.quality.forward import Settings
    from mergekit_lite.search.task import Wanted, read_task
    from mergekit_lite.search.written import write_best

    require_writable(out, overwrite=overwrite)
    chosen = strategy["method"] not in WITHOUT_MARKS
    if strategy["storage"] and not chosen:
        raise click.UsageError(f"{strategy['method']} is done in one go: leave out --storage")
    wanted = Wanted(_files(data), _files(test), windows, window_bytes, allow_test_data, chosen)
    task = read_task(recipe, changes, wanted)
    settings = Settings(device=device, dtype=dtype, max_memory=max_memory)
    found = _search(task, settings, threads, steps=steps, rate=rate, **strategy)
    write_best(found, out)
    note(f"written: {out}")
    if report is not None:
        from mergekit_lite.search.page import page

        report.write_text(page(found), encoding="utf-8")
        note(f"written: {report}")
    if as_json:
        print_json(_record(found))
    else:
        _tell(found)


def _search(
    task: Task,
    settings: Settings,
    threads: int | None,
    *,
    method: str,
    steps: int,
    rate: float,
    study: str,
    **strategy: Any,
) -> Found:
    """Search by the method that is asked for, and tell of every candidate."""
    from mergekit_lite.search.adamerging import Learning, adamerging
    from mergekit_lite.search.greedy import greedy
    from mergekit_lite.search.run import search
    from mergekit_lite.search.study import Strategy

    how: dict[str, Any] = {
        "threads": threads,
        "tell": note,
        "tell_trial": lambda trial: note(_line(task, trial)),
    }
    if method == "greedy":
        return greedy(task, settings, **how)
    if method == "adamerging":
        return adamerging(task, Learning(steps, rate), settings, **how)
    return search(task, Strategy(method, name=study, **strategy), settings, **how)


def require_writable(out: Path, *, overwrite: bool) -> None:
    """Check, before anything is computed, that the recipe can be written.

    Raises:
        RecipeError: the file is there, or its folder is not.
    """
    from mergekit_lite.errors import RecipeError

    if out.exists() and not overwrite:
        raise RecipeError(f"`{out}` is there already", "--out", "give --overwrite to replace it")
    if not out.absolute().parent.is_dir():
        raise RecipeError(f"there is no folder for `{out}`", "--out", "make it first")


def _files(words: tuple[str, ...]) -> dict[str, str]:
    """Return the files of a command line by name; their paths are spelt from anywhere."""
    from mergekit_lite.quality.data import named_files

    found = named_files(words)
    return {
        name: file if file.startswith("zoo:") else str(Path(file).expanduser().absolute())
        for name, file in found.items()
    }


def _line(task: Task, trial: Trial) -> str:
    from mergekit_lite.search.task import shown

    scores = " ".join(f"{score:.4f}" for score in trial.scores)
    state = {"pruned": "left: ", "failed": f"failed ({trial.error}): "}.get(trial.state, "")
    return f"{trial.number}: {state}{scores}  {shown(trial.values)}"


def _tell(found: Found) -> None:
    from mergekit_lite.search.task import shown
    from mergekit_lite.search.written import score_text, scores_lines

    best = found.best
    click.echo(f"best: number {best.number} of {len(found.trials)}, {shown(best.values)}")
    for line in scores_lines(found.task.objectives, best):
        click.echo(f"  {line}")
    for trial in found.front if len(found.front) > 1 else ():
        click.echo(f"no worse in all: {_line(found.task, trial)}")
    for name, score in found.test.items():
        click.echo(f"held-out {name}: {score_text(score)}")
    if found.told_before:
        note("the held-out data had been looked at by an earlier call: it is no longer unseen")


def _record(found: Found) -> dict[str, Any]:
    from mergekit_lite.quality.scores import score_record
    from mergekit_lite.search.written import named

    def plain(trial: Trial) -> dict[str, Any]:
        scores = dict(zip(map(named, found.task.objectives), trial.scores, strict=False))
        return {
            "number": trial.number,
            "state": trial.state,
            "values": dict(trial.values),
            "scores": scores,
            **({"error": trial.error} if trial.error else {}),
        }

    return {
        "best": plain(found.best),
        "trials": [plain(trial) for trial in found.trials],
        "front": [trial.number for trial in found.front],
        "test": {name: score_record(score) for name, score in found.test.items()},
        "test_seen_before": found.told_before,
        "memory": found.memory,
    }
