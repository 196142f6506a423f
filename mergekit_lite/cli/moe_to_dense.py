"""`mergekit-lite moe to-dense`: one feed-forward layer in place of all experts."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mergekit_lite.cli import _parameters as parameters


@click.command("to-dense", short_help="Make a dense model of a routed one.")
@click.argument("model")
@parameters.out("Folder to make.")
@click.option(
    "--method",
    type=click.Choice(["mean", "frequency", "top1", "concat"]),
    default="mean",
    show_default=True,
    help="The mean of all experts, weighed by how often they are chosen, or the most chosen one;"
    " or the slices of a carved model put together again.",
)
@click.option("--stats", help="Folder of `calibrate --collect rates`; for frequency and top1.")
@parameters.threads
@parameters.max_memory
@click.option("--overwrite", is_flag=True, help="Replace an output folder that holds a model.")
def command(
    model: str,
    out: Path | None,
    method: str,
    stats: str | None,
    threads: int | None,
    max_memory: int | None,
    overwrite: bool,
) -> None:
    """Make a dense model of MODEL; exact where all its experts are the same, or its slices.

    It runs the recipe `moe: {dense: {method: ..., stats: ...}}`, which the output's lock holds.

    \b
    Examples:
      mergekit-lite moe to-dense ./routed -o dense
      mergekit-lite moe to-dense ./routed -o dense --method frequency --stats ./statistics
      mergekit-lite moe to-dense ./carved -o dense --method concat
    """
    from mergekit_lite import api
    from mergekit_lite.cli._progress import ProgressSink, choose_style

    if out is None:
        raise click.UsageError("name the folder to make with -o/--out")
    dense = {"method": method, **({"stats": stats} if stats is not None else {})}
    recipe = {"base": model, "moe": {"dense": dense}}
    with ProgressSink(choose_style("plain", False, sys.stderr)) as emit:
        api.run(recipe, out, emit=emit, threads=threads, max_memory=max_memory, overwrite=overwrite)
    click.echo(str(out))
