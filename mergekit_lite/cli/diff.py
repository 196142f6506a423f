"""`mergekit-lite diff`: compare two checkpoints, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note, print_json, table
from mergekit_lite.cli._reading import reading
from mergekit_lite.errors import RecipeError

if TYPE_CHECKING:
    from mergekit_lite.report.diff import Difference, Pair
    from mergekit_lite.sources import Model

SHOWN = 5


@click.command(short_help="Compare two checkpoints, layer by layer.")
@click.argument("a")
@click.argument("b")
@click.option(
    "--by",
    type=click.Choice(["layer", "role", "both"]),
    default="both",
    show_default=True,
    help="A line for each layer, each role, or each layer and role.",
)
@parameters.as_json
def command(a: str, b: str, by: str, as_json: bool) -> None:
    """Compare the checkpoints A and B: norm of the difference, cosine, share of entries changed.

    Both are read once, a few tiles at a time.

    \b
    Example:
      mergekit-lite diff ./base ./merged --by role
    """
    from mergekit_lite.plan.names import plural
    from mergekit_lite.report.diff import compare

    left, right = _checkpoint(a), _checkpoint(b)
    total = sum(sum(model.header.files.values()) for model in (left, right))
    with reading(total) as progress:
        found = compare(left, right, progress)
    if as_json:
        print_json(plain(found, by))
        return
    click.echo(difference_text(found, by))
    for title, names in (
        (f"only in {a}", found.only_a),
        (f"only in {b}", found.only_b),
        ("of another shape or kind", found.unlike),
    ):
        if names:
            note(
                f"{plural(len(names), 'tensor')} {title}: {', '.join(names[:SHOWN])}{_more(names)}"
            )
    if found.same:
        note("the two are the same")


def _checkpoint(reference: str) -> Model:
    from mergekit_lite.sources import resolve

    model = resolve(reference, relative_to=Path.cwd())
    if model.adapter is not None:
        hint = "merge it first, or compare two checkpoints"
        what = f"is {'a patch' if model.kind == 'patch' else 'an adapter'}"
        raise RecipeError(f"{what}, which has no weights of its own", reference, hint)
    return model


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""


def lines_of(found: Difference, by: str) -> list[tuple[dict[str, Any], Pair]]:
    """Return what each line is about, and its sums."""
    from mergekit_lite.report.diff import by_layer, by_role

    if by == "layer":
        return [({"layer": layer}, pair) for layer, pair in by_layer(found.groups).items()]
    if by == "role":
        return [({"role": role}, pair) for role, pair in sorted(by_role(found.groups).items())]
    return [({"layer": layer, "role": role}, pair) for (layer, role), pair in found.groups.items()]


def difference_text(found: Difference, by: str) -> str:
    """Return the difference as a table, with the total below."""
    lines = lines_of(found, by)
    keys = ["layer", "role"] if by == "both" else [by]
    rows: list[list[object]] = [
        [*("-" if label[key] is None else label[key] for key in keys), *_cells(pair)]
        for label, pair in lines
    ]
    rows.append(["total", *[""] * (len(keys) - 1), *_cells(found.total)])
    header = [*keys, "tensors", "entries", "norm", "relative", "cosine", "changed"]
    sides = "".join("r" if key == "layer" else "l" for key in keys)
    return table(header, rows, sides + "rrrrrr")


def _cells(pair: Pair) -> list[object]:
    relative, cosine = pair.relative, pair.cosine
    return [
        pair.tensors,
        f"{pair.entries:,}",
        f"{pair.norm:.4g}",
        "-" if relative is None else f"{relative:.3g}",
        "-" if cosine is None else f"{cosine:.6f}",
        f"{100 * pair.share:.2f}%",
    ]


def plain(found: Difference, by: str) -> dict[str, Any]:
    """Return the difference as JSON-able data."""
    return {
        "groups": [{**label, **_numbers(pair)} for label, pair in lines_of(found, by)],
        "total": _numbers(found.total),
        "only_a": list(found.only_a),
        "only_b": list(found.only_b),
        "unlike": list(found.unlike),
        "same": found.same,
    }


def _numbers(pair: Pair) -> dict[str, Any]:
    return {
        "tensors": pair.tensors,
        "entries": pair.entries,
        "norm": pair.norm,
        "relative": pair.relative,
        "cosine": pair.cosine,
        "changed": pair.share,
    }
