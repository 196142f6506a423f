"""`mergekit-lite report`: how the task vectors of a recipe compare, as text or a page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note, print_json, table
from mergekit_lite.cli._reading import reading
from mergekit_lite.errors import RecipeError, ResourceError

if TYPE_CHECKING:
    from mergekit_lite.report.vectors import Vectors


@click.command(short_help="Show how the experts of a recipe differ and where they disagree.")
@parameters.recipe
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page.")
@click.option(
    "--scores",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Put scores on the page: what `eval --json` printed.",
)
@click.option(
    "--routing",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Put the choices of routers on the page: what `moe probe --json` printed.",
)
@parameters.changes
@parameters.threads
@parameters.as_json
def command(
    recipe: Path,
    html: Path | None,
    scores: Path | None,
    routing: Path | None,
    changes: tuple[str, ...],
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare the task vectors of RECIPE's experts: cosines, norms, sign conflicts, overlap.

    Reads every model once, tile by tile, and again where a transform needs to rank entries first.
    The page is one file that needs no network.

    \b
    Examples:
      mergekit-lite report recipe.yaml
      mergekit-lite report recipe.yaml --html report.html
      mergekit-lite eval merged --recipe recipe.yaml --json > scores.json
      mergekit-lite report recipe.yaml --html report.html --scores scores.json
    """
    from mergekit_lite import api
    from mergekit_lite.plan.build import prepare

    if html is not None:
        _require_place(html)
    elif scores or routing:
        raise click.UsageError("--scores and --routing are for a page: name it with --html")
    further = _further(scores, routing)
    loaded = api.load(recipe, changes, models=True)
    plan, models = prepare(loaded)
    for warning in plan.warnings:
        note(f"warning: {warning}")
    total = sum(size for model in models.values() for size in model.header.files.values())
    # torch takes two seconds to import, which a wrong recipe need not pay.
    from mergekit_lite.report.measure import measure

    with reading(total) as progress:
        workers = threads or os.cpu_count() or 1
        found = measure(loaded, plan, models, threads=workers, progress=progress)
    if html is not None:
        from mergekit_lite.report.page import page

        _write(html, page(found, further))
        note(f"wrote {html}")
    if as_json:
        print_json(found.plain())
    elif html is None:
        click.echo(vectors_text(found))


def _further(scores: Path | None, routing: Path | None) -> list[str]:
    """Return the parts of the page that are made of files of results."""
    from mergekit_lite.report.scored import read_section, routing_section, scores_section

    parts = [] if scores is None else [read_section(scores, scores_section, "eval")]
    if routing is not None:
        parts.append(read_section(routing, routing_section, "moe probe"))
    return parts


def vectors_text(found: Vectors) -> str:
    """Return the figures of the whole model and of each layer as tables."""
    total, names = found.total, found.names
    rows: list[list[object]] = [
        [name, reference, f"{total.norm(i):.4g}", _share(total.relative(i))]
        for i, (name, reference) in enumerate(found.experts.items())
    ]
    parts = [table(["expert", "model", "norm", "relative"], rows, "llrr")]
    if found.pairs:
        pairs: list[list[object]] = [
            [
                f"{names[a]} ~ {names[b]}",
                _number(total.cosine(a, b)),
                _share(total.kept.overlap(a, b)),
            ]
            for a, b in found.pairs
        ]
        parts.append(table(["pair", "cosine", "overlap of kept"], pairs, "lrr"))
        lines: list[list[object]] = [
            [
                layer,
                *(_share(sums.relative(i)) for i in range(len(names))),
                _share(sums.raw.conflict_share),
                _share(sums.kept.conflict_share),
            ]
            for layer, sums in found.by_layer().items()
        ]
        head = ["layer", *names, "conflicts", "of kept"]
        parts.append(table(head, lines, "r" * len(head)))
    return "\n\n".join(parts)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3g}%"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _require_place(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is read."""
    if path.is_dir():
        raise RecipeError("is a folder", str(path), "name a file, such as report.html")
    if not path.absolute().parent.is_dir():
        raise RecipeError("there is no such folder", str(path.parent), "make it first")


def _write(path: Path, text: str) -> None:
    """Write the page beside its place first, so that it is there as a whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ResourceError(
            f"cannot write: {error}", str(path), "free space or choose another place"
        ) from error
