"""`mergekit-lite inspect`: summarise a checkpoint from its headers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import bytes_text, note, print_json, table

if TYPE_CHECKING:
    from mergekit_lite.checkpoint import Header
    from mergekit_lite.checkpoint.store import Store
    from mergekit_lite.report.inspect import Count, Summary
    from mergekit_lite.sources import Model


@click.command(short_help="Summarise a checkpoint from its headers.")
@click.argument("model")
@click.option("--tensors", metavar="GLOB", help="List the tensors whose name matches.")
@click.option("--density", is_flag=True, help="Read the weights and count those that are not zero.")
@parameters.as_json
def command(model: str, tensors: str | None, density: bool, as_json: bool) -> None:
    """Summarise MODEL (a folder, a .safetensors file, a patch, a store, zoo:NAME) from its headers.

    \b
    Examples:
      mergekit-lite inspect ./model
      mergekit-lite inspect ./model --tensors '*.layers.0.*'
      mergekit-lite inspect ./sparse --density
    """
    from mergekit_lite.report.inspect import summarise
    from mergekit_lite.sources import resolve, stored_tasks

    if not (tensors or density) and (held := stored_tasks(model, Path.cwd())) is not None:
        _store(*held, as_json=as_json)
        return
    found = resolve(model, relative_to=Path.cwd())
    if tensors is not None:
        _list(found, tensors, as_json=as_json)
        return
    if density:
        _density(found, as_json=as_json)
        return
    if found.kind == "patch":
        _patch(found, as_json=as_json)
        return
    summary = summarise(found)
    if as_json:
        print_json(summary.plain())
        return
    for warning in summary.warnings:
        note(f"warning: {warning}")
    click.echo(summary_text(summary))


def _store(store: Store, header: Header, *, as_json: bool) -> None:
    from mergekit_lite.cli.store import summary_text
    from mergekit_lite.report.stores import summarise_store

    summary = summarise_store(store, header)
    if as_json:
        print_json(summary.plain())
    else:
        click.echo(summary_text(summary))


def _patch(model: Model, *, as_json: bool) -> None:
    from mergekit_lite.cli._patches import summary_text
    from mergekit_lite.report.patches import summarise_patch

    summary = summarise_patch(model)
    if as_json:
        print_json(summary.plain())
    else:
        click.echo(summary_text(summary))


def _density(model: Model, *, as_json: bool) -> None:
    from mergekit_lite.report.density import by_role, densities

    found = densities(model)
    roles = by_role(found)
    if as_json:
        named = {"roles": roles, "tensors": found}
        print_json(
            {k: {name: one.plain() for name, one in part.items()} for k, part in named.items()}
        )
        return
    rows = [
        (name, one.tensors, f"{one.entries:,}", f"{one.density:.4f}", one.two_of_four)
        for name, one in roles.items()
    ]
    click.echo(table(("role", "tensors", "entries", "density", "2:4"), rows, "lrrrr"))


def _list(model: Model, pattern: str, *, as_json: bool) -> None:
    from mergekit_lite.errors import RecipeError
    from mergekit_lite.report.inspect import matching

    found = matching(model, pattern)
    if not found:
        raise RecipeError(f"no tensor matches `{pattern}`", model.reference, "quote the pattern")
    if as_json:
        print_json(
            [
                {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "file": t.file}
                for t in found
            ]
        )
        return
    rows = [
        (t.name, t.dtype, "x".join(map(str, t.shape)) or "()", bytes_text(t.nbytes), t.file)
        for t in found
    ]
    click.echo(table(("tensor", "dtype", "shape", "size", "file"), rows, "lllrl"))


def summary_text(summary: Summary) -> str:
    """Return a summary for a person to read."""
    from mergekit_lite.plan.names import plural

    total = summary.total
    facts = {
        "kind": summary.kind,
        "tensors": f"{total.tensors}",
        "entries": f"{total.entries:,}",
        "size": f"{bytes_text(total.nbytes)} in {plural(len(summary.files), 'file')}",
        "layers": f"{summary.layers}",
        **{key: _fact(value) for key, value in summary.config.items()},
        **{f"adapter {key}": str(value) for key, value in summary.adapter.items()},
    }
    width = max(map(len, facts)) + 2
    lines = [f"{name:{width}}{value}" for name, value in facts.items()]
    tables = [_counts("dtype", summary.dtypes), _counts("role", summary.roles)]
    return "\n\n".join(["\n".join(lines), *tables])


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return str(value.get("quant_method", "present"))
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _counts(title: str, counts: Mapping[str, Count]) -> str:
    rows = [
        (name, count.tensors, f"{count.entries:,}", bytes_text(count.nbytes))
        for name, count in counts.items()
    ]
    return table((title, "tensors", "entries", "size"), rows, "lrrr")
