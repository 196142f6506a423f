"""`mergekit-lite eval`: how good a model is, and what it lost of its parents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note, print_json, table

if TYPE_CHECKING:
    from mergekit_lite.quality.results import Baseline
    from mergekit_lite.quality.scores import Evaluation, Score


@click.command(short_help="Score a model, and compare it with its parents.")
@click.argument("model")
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="[NAME=]FILE",
    help="Texts or questions, .txt or .jsonl, or zoo:NAME; may be repeated.",
)
@click.option(
    "--parent",
    multiple=True,
    metavar="NAME=MODEL",
    help="A model that this one was made of; `base` is the base. May be repeated.",
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
    default=16,
    show_default=True,
    help="Most windows of a text, or questions of a file, that are scored.",
)
@click.option(
    "--window-bytes",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Bytes of a window; it ends with a line.",
)
@click.option("--device", default="cpu", show_default=True, help="Where it is computed.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Dtype of the forward pass; sums are fp64 always.",
)
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
    parent: tuple[str, ...],
    baseline: Path | None,
    update_baseline: bool,
    windows: int,
    window_bytes: int,
    device: str,
    dtype: str,
    max_memory: int | None,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Score MODEL on texts and questions, one layer in memory at a time.

    A .txt file is running text; a line of a .jsonl file has "text", or "question", "choices" and
    "answer" (the number of the right choice from 0, or the choice itself). Of texts: bits per byte
    and perplexity. Of questions: the part whose right choice is likeliest, by byte.

    Each parent is scored too, with the divergence of MODEL from it, the part of tokens that both
    predict alike, and recovery: MODEL's score over the parent's, of texts the parent's bits per
    byte over MODEL's, so that 1 is as good. Intervals hold 95 % of paired bootstrap draws.

    \b
    Examples:
      mergekit-lite eval merged --data german=heldout.txt --parent base=./base --parent german=./de
      mergekit-lite eval merged --data quiz.jsonl --baseline scores.json --junit eval.xml
    """
    from mergekit_lite.quality.bounds import against_baseline
    from mergekit_lite.quality.data import named_files, read_data
    from mergekit_lite.quality.evaluate import evaluate
    from mergekit_lite.quality.forward import Settings
    from mergekit_lite.quality.results import (
        read_baseline,
        record,
        require_version,
        write_results,
    )
    from mergekit_lite.quality.subjects import MERGE, parents, subject
    from mergekit_lite.quality.verdicts import junit as as_junit
    from mergekit_lite.quality.verdicts import require_all, verdicts_of

    if update_baseline and baseline is None:
        raise click.UsageError("name the file to write with --baseline")
    read = read_data(named_files(data), most=windows, size=window_bytes)
    earlier = None
    if baseline is not None and not update_baseline:
        earlier = read_baseline(baseline)
        require_version(earlier, {each.name: each.version for each in read}, baseline)
    names = _named(parent)
    found = evaluate(
        subject(MERGE, model, base=names.get("base", "")),
        parents(names),
        read,
        Settings(device=device, dtype=dtype, max_memory=max_memory),
        tell=note,
    )
    verdicts = verdicts_of(found)
    if earlier is not None:
        verdicts += against_baseline(found, earlier)
    if junit is not None:
        junit.write_text(as_junit(verdicts, f"mergekit-lite eval {model}"), encoding="utf-8")
    if as_json:
        print_json(record(found))
    else:
        click.echo(score_table(found, earlier))
    if update_baseline and baseline is not None:
        write_results(found, baseline)
        note(f"written: {baseline}")
    require_all(verdicts)


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


def score_table(found: Evaluation, earlier: Baseline | None = None) -> str:
    """Return one line for each data and model: its score, and what MODEL has of it."""
    from mergekit_lite.quality.measures import measured
    from mergekit_lite.quality.subjects import MERGE

    rows = []
    for data in found.data:
        own = found.scores[MERGE][data]
        others = {name: scores[data] for name, scores in found.scores.items() if name != MERGE}
        if earlier is not None:
            others["baseline"] = earlier.scores[data]
        rows.append((data, MERGE, *_cells(own), "", "", "", ""))
        for name, score in others.items():
            recovery = measured("recovery", own, score)
            flips = ""
            if not hasattr(own, "nats"):
                flips = f"{100 * measured('flips', own, score).value:.1f} %"
            like = found.likeness.get(name, {}).get(data)
            rows.append(
                (
                    data,
                    name,
                    *_cells(score),
                    f"{recovery.value:.3f} [{recovery.low:.3f}, {recovery.high:.3f}]",
                    f"{like.mean_kl:.4f}" if like else "",
                    f"{100 * like.agreement:.1f} %" if like else "",
                    flips,
                )
            )
    header = ("data", "model", "score", "", "recovery [95 %]", "KL", "agreement", "flips")
    return table(header, rows, "llrlrrrr")


def _cells(score: Score) -> tuple[str, str]:
    from mergekit_lite.quality.scores import TextScore

    if isinstance(score, TextScore):
        return f"{score.bits_per_byte:.4f}", f"bits/byte, perplexity {score.perplexity:.4g}"
    return f"{100 * score.accuracy:.1f} %", f"right of {len(score.answers)}"
