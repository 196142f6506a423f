"""`mergekit-lite moe fit-router` and `moe route`: whole models, chosen by what a text is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note, print_json, table

if TYPE_CHECKING:
    from mergekit_lite.router import HeldOut


@click.command("fit-router", short_help="Fit a router of texts to whole models.")
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="[LABEL=]FILE",
    help="Texts, .txt or .jsonl; may be repeated.",
)
@click.option(
    "--model",
    "named",
    multiple=True,
    metavar="LABEL=MODEL",
    help="Which model a label's texts go to; may be repeated.",
)
@click.option(
    "--scores",
    type=click.Path(path_type=Path),
    help="JSON of label -> model -> score, in place of --model: the best model of each label.",
)
@click.option(
    "--most-models", type=click.IntRange(min=1), help="With --scores: use no more models than so."
)
@click.option(
    "--held-out",
    multiple=True,
    metavar="[LABEL=]FILE",
    help="Texts to measure on; by default a part of the data.",
)
@click.option(
    "--part",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Without --held-out: which part of the texts is held out.",
)
@click.option("--embedding", metavar="MODEL", help="See texts as means of this model's embeddings.")
@click.option("--ridge", type=click.FloatRange(0, min_open=True), default=0.1, show_default=True)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File."
)
@parameters.as_json
def fit(
    data: tuple[str, ...],
    named: tuple[str, ...],
    scores: Path | None,
    most_models: int | None,
    held_out: tuple[str, ...],
    part: float,
    embedding: str | None,
    ridge: float,
    out: Path,
    as_json: bool,
) -> None:
    """Fit a classifier of texts and write it, with the model of each label, as router.json.

    Printed is where texts go that it was not fitted to. A file's label is its name up to the first
    dot, or what stands before `=`, or `domain` in a line of .jsonl.

    \b
    Examples:
      mergekit-lite moe fit-router --data math.jsonl --data code.jsonl \\
        --model math=./math --model code=./code -o router.json
      mergekit-lite moe route router.json "What is 3 + 4?"
    """
    from mergekit_lite.calibrate.texts import data_files, read_texts
    from mergekit_lite.router import fit_router, held_out_split
    from mergekit_lite.router.features import Embedding, Ngrams
    from mergekit_lite.router.fit import labelled

    texts = labelled(read_texts(data_files(data)))
    if held_out:
        kept, held = texts, labelled(read_texts(data_files(held_out)))
    else:
        kept, held = held_out_split(texts, part)
    features = Embedding(embedding) if embedding else Ngrams()
    models = _models(named, scores, most_models)
    fitted = fit_router(kept, models, held, features=features, ridge=ridge)
    found = {"texts": fitted.held_out.texts, "right": fitted.held_out.right}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(fitted.router.text(found), encoding="utf-8")
    if as_json:
        print_json({**found, "labels": fitted.held_out.labels, "counts": fitted.held_out.counts})
    else:
        click.echo(_table(fitted.held_out))
    note(f"wrote {out}")


@click.command("route", short_help="Say which model a text goes to.")
@click.argument("router", type=click.Path(path_type=Path))
@click.argument("text")
@parameters.as_json
def route(router: Path, text: str, as_json: bool) -> None:
    """Print the label and the model that ROUTER, a router.json, has for TEXT."""
    from mergekit_lite.router import load_router

    choice = load_router(router).route(text)
    if as_json:
        print_json({"label": choice.label, "model": choice.model, "scores": dict(choice.scores)})
    else:
        click.echo(f"{choice.label}\t{choice.model}")


def _models(named: tuple[str, ...], scores: Path | None, most: int | None) -> dict[str, str]:
    """Return the model of each label."""
    from mergekit_lite.errors import DataError, RecipeError
    from mergekit_lite.router import choose_models

    if scores is None:
        if most is not None:
            raise RecipeError("--most-models chooses among --scores, which are not given")
        wrong = [pair for pair in named if not all(pair.partition("=")[::2])]
        if wrong:
            raise RecipeError(f"`--model {wrong[0]}` is not LABEL=MODEL")
        return dict(pair.split("=", 1) for pair in named)
    if named:
        raise RecipeError("--model and --scores both say which model a label goes to; give one")
    try:
        found = json.loads(scores.read_bytes())
        rows = {str(k): {str(m): float(v) for m, v in row.items()} for k, row in found.items()}
    except OSError as error:
        raise RecipeError(f"cannot read the scores: {error.strerror}", str(scores)) from error
    except (ValueError, TypeError, AttributeError):
        hint = 'write {"LABEL": {"MODEL": 0.7, ...}, ...}'
        raise DataError("not a JSON object of scores", str(scores), hint) from None
    return choose_models(rows, most)


def _table(found: HeldOut) -> str:
    """Return one line a label: where its held-out texts went, and how many are right."""
    rows = [
        (label, *row, f"{100 * row[index] / max(sum(row), 1):.1f} %")
        for index, (label, row) in enumerate(zip(found.labels, found.counts, strict=True))
    ]
    share = f"{100 * found.right / found.texts:.1f} %"
    rows.append(("all", *("" for _ in found.labels), share))
    return table(("held out", *found.labels, "right"), rows, "l" + "r" * (len(found.labels) + 1))
