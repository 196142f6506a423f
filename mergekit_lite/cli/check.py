"""`mergekit-lite check`: report every problem of a recipe at once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note, print_json
from mergekit_lite.errors import MergekitLiteError, RecipeError


@click.command(short_help="Report every problem of a recipe at once.")
@parameters.recipe
@parameters.changes
@click.option("--strict", is_flag=True, help="Count warnings as problems.")
@parameters.as_json
def command(recipe: Path, changes: tuple[str, ...], strict: bool, as_json: bool) -> None:
    """Check RECIPE and the headers of its models; report all problems at once.

    \b
    Examples:
      mergekit-lite check recipe.yaml
      mergekit-lite check recipe.yaml --strict --json
    """
    from mergekit_lite import api
    from mergekit_lite.plan.names import plural

    try:
        loaded = api.load(recipe, changes, models=True)
        if loaded.expect is not None:
            from mergekit_lite.quality.expected import expected

            expected(loaded)
        ready = api.plan(loaded)
    except MergekitLiteError as error:
        if not as_json:
            raise
        print_json({"problems": [asdict(problem) for problem in error.problems], "warnings": []})
        raise click.exceptions.Exit(error.exit_code) from None
    if as_json:
        print_json({"problems": [], "warnings": list(ready.warnings)})
    else:
        for warning in ready.warnings:
            note(f"warning: {warning}")
        click.echo(
            f"{recipe}: sound; {plural(len(ready.jobs), 'tensor')},"
            f" {plural(len(ready.warnings), 'warning')}"
        )
    if strict and ready.warnings:
        count = plural(len(ready.warnings), "warning")
        raise RecipeError(f"{count}, and --strict counts them", str(recipe))
