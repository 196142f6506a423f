"""`mergekit-lite import`: a mergekit recipe in this package's language."""

from __future__ import annotations

from pathlib import Path

import click

from mergekit_lite.cli._output import note
from mergekit_lite.errors import RecipeError


@click.command("import", short_help="Convert a mergekit recipe.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; else stdout.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
def command(file: Path, out: Path | None, overwrite: bool) -> None:
    """Convert FILE, a mergekit recipe, to a recipe of this tool.

    Every verb reads such files as they are; this is for going on in the other language. What was
    left out, because it changes nothing or means nothing here, is said on stderr.

    \b
    Examples:
      mergekit-lite import mergekit_config.yml -o recipe.yaml
      mergekit-lite import mergekit_config.yml | less
    """
    from mergekit_lite import api

    if out is not None and out.exists() and not overwrite:
        raise RecipeError(f"`{out}` exists", hint="name another file, or add --overwrite")
    found = api.import_recipe(file, out.parent if out is not None else ".")
    for remark in found.notes:
        note(f"note: {remark}")
    if out is None:
        click.echo(found.text, nl=False)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(found.text, encoding="utf-8")
        note(f"next: mergekit-lite plan {out}")
