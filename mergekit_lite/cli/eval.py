"""`mergekit-lite eval`: how good a model is, and what it lost of its parents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note, print_json
from mergekit_lite.cli._scores import score_table, tell_verdicts, write_junit

if TYPE_CHECKING:
    from mergekit_lite.quality.forward import Settings
    from mergekit_lite.quality.results import Baseline
    from mergekit_lite.quality.scores import Evaluation
    from mergekit_lite.quality.verdicts import Verdict

Scored = tuple["Evaluation", list["Verdict"], "Baseline | None", Path | None]


@click.command(short_help="Score a model, and compare it with its parents.")
@click.argument("model")
@click.option(
    "--data",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Texts or questions, .txt or .jsonl, or zoo:NAME; may be repeated.",
)
@click.option(
    "--tasks",
    default="",
    metavar="TASK,...",
    help="Tasks of lm-eval, by name, or FILE.yaml of your own; all of a model is in memory then.",
)
@click.option(
    "--parent",
    multiple=True,
    metavar="NAME=MODEL",
    help="A model that this one was made of; `base` is the base. May be repeated.",
)
@click.option(
    "--recipe",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Check the bounds of this recipe's `expect`, on its data.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Results of an earlier model; getting worse than it is exit code 3.",
)
@click.option("--update-baseline", is_flag=True, help="Write these results as the baseline.")
@click.option(
    "--windows",
    type=click.IntRange(min=1),
    help="Most windows of a text, or lines of a file, that are scored.  [default: 16]",
)
@click.option(
    "--window-bytes",
    type=click.IntRange(min=1),
    help="Bytes of a window; it ends with a line.  [default: 512]",
)
@parameters.device
@parameters.pass_dtype
@parameters.max_memory
@click.option(
    "--junit",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write what was checked as JUnit XML, for CI.",
)
@parameters.as_json
def command(
    model: str,
    data: tuple[str, ...],
    tasks: str,
    parent: tuple[str, ...],
    recipe: Path | None,
    baseline: Path | None,
    update_baseline: bool,
    windows: int | None,
    window_bytes: int | None,
    device: str,
    dtype: str,
    max_memory: int | None,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Score MODEL on texts, questions, labels or pairs, one layer in memory at a time.

    A .txt file is running text; a line of a .jsonl file has "text", or "question", "choices" and
    "answer" (the number of the right choice from 0, or the choice itself). Of texts: bits per byte
    and perplexity. Of questions: the part whose right choice is likeliest, by byte. Where MODEL has
    a head for labels, a line has "text" (and "other"), and "label", which is a number from 0 or a
    name of the config. Any model, encoders too, takes lines with "text", "other" and "similarity":
    how well cosines of its vectors follow the order of the similarities.

    --tasks goes to the evaluation harness lm-eval; its scores are compared like the others.

    Each parent is scored too, with the divergence of MODEL from it, the part of tokens that both
    predict alike, and recovery: MODEL's score over the parent's, of texts the parent's bits per
    byte over MODEL's, so that 1 is as good. Intervals hold 95 % of paired bootstrap draws.

    \b
    Examples:
      mergekit-lite eval merged --data german=heldout.txt --parent base=./base --parent german=./de
      mergekit-lite eval merged --data quiz.jsonl --baseline scores.json --junit eval.xml
      mergekit-lite eval merged --recipe recipe.yaml
    """
    from mergekit_lite.quality.forward import Settings
    from mergekit_lite.quality.results import record, write_results

    settings = Settings(device=device, dtype=dtype, max_memory=max_memory)
    if recipe is not None:
        if data or tasks or parent or baseline or windows or window_bytes:
            raise click.UsageError("--recipe says what data, parents, baseline and windows are")
        scored = _by_recipe(model, recipe, settings, update=update_baseline)
    else:
        if not data and not tasks:
            raise click.UsageError("give --data, --tasks or --recipe")
        size = (windows or 16, window_bytes or 512)
        on = (data, tasks)
        scored = _by_hand(model, on, parent, baseline, size, settings, update_baseline)
    found, verdicts, earlier, file = scored
    write_junit(verdicts, junit, f"eval {model}")
    if as_json:
        print_json(record(found))
    else:
        click.echo(score_table(found, earlier))
    if update_baseline:
        if file is None:
            raise click.UsageError("name the file to write with --baseline")
        write_results(found, file)
        note(f"written: {file}")
    tell_verdicts(verdicts)


def _by_hand(
    model: str,
    on: tuple[Sequence[str], str],
    parent: Sequence[str],
    baseline: Path | None,
    windows: tuple[int, int],
    settings: Settings,
    update: bool,
) -> Scored:
    """Score on the data, and against the parents, of the command line."""
    from mergekit_lite.quality.bounds import against_baseline
    from mergekit_lite.quality.data import named_files, read_data
    from mergekit_lite.quality.evaluate import evaluate
    from mergekit_lite.quality.results import read_baseline, require_version
    from mergekit_lite.quality.subjects import MERGE, parents, subject
    from mergekit_lite.quality.tasks import named_tasks, read_tasks
    from mergekit_lite.quality.verdicts import verdicts_of

    if update and baseline is None:
        raise click.UsageError("name the file to write with --baseline")
    read = read_data(named_files(on[0]), most=windows[0], size=windows[1])
    tasks = read_tasks(named_tasks(on[1]))
    if twice := {each.name for each in read} & {each.name for each in tasks}:
        raise click.UsageError(f"a task and a file of data are called `{min(twice)}`")
    earlier = None
    if baseline is not None and not update:
        earlier = read_baseline(baseline)
        require_version(earlier, {each.name: each.version for each in (*read, *tasks)}, baseline)
    names = _named(parent)
    merged = subject(MERGE, model, base=names.get("base", ""))
    found = evaluate(merged, parents(names), read, settings, tasks=tasks, tell=note)
    verdicts = verdicts_of(found)
    if earlier is not None:
        verdicts += against_baseline(found, earlier)
    return found, verdicts, earlier, baseline


def _by_recipe(model: str, recipe: Path, settings: Settings, *, update: bool) -> Scored:
    """Score on the data, and against the models, of a recipe's `expect`."""
    from mergekit_lite import api
    from mergekit_lite.quality.expected import check, expected

    loaded = api.load(recipe)
    wanted = expected(loaded, baseline=not update)
    if wanted is None:
        raise click.UsageError(f"`{recipe}` has no `expect` to check")
    named = wanted.expect.baseline
    if update and named is None:
        raise click.UsageError(f"the `expect` of `{recipe}` names no `baseline` to write")
    found, verdicts = check(wanted, Path(model), settings, tell=note)
    earlier = wanted.baseline
    return found, verdicts, earlier, None if named is None else loaded.folder / named


def _named(words: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, equals, reference = word.partition("=")
        if not (name and equals and reference):
            raise click.UsageError(f"`--parent {word}` is not NAME=MODEL")
        if name in found:
            raise click.UsageError(f"two parents are called `{name}`")
        found[name] = reference
    return found
