"""`mergekit-lite apply`: a patch and its base as a model again."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mergekit_lite.cli import _parameters as parameters


@click.command(short_help="Make the model that a patch stands for.")
@click.argument("patch")
@click.option("--base", required=True, metavar="MODEL", help="The model it was made against.")
@parameters.out("Folder of the model to make.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Dtype of the model; the base's by default.",
)
@parameters.threads
@parameters.max_memory
@click.option("--overwrite", is_flag=True, help="Replace an output folder that holds a model.")
def command(
    patch: str,
    base: str,
    out: Path | None,
    dtype: str | None,
    threads: int | None,
    max_memory: int | None,
    overwrite: bool,
) -> None:
    """Add PATCH to its base: every entry is the base's plus the decoded difference, rounded once.

    A base that differs in a single tensor is refused, and so is a damaged patch. The folder appears
    complete or not at all; an interrupted call is taken up by the same one.

    \b
    Example:
      mergekit-lite apply math.patch.safetensors --base ./base -o math
    """
    from mergekit_lite import patching
    from mergekit_lite.cli._progress import ProgressSink, choose_style

    if out is None:
        raise click.UsageError("name the folder to make with -o/--out")
    with ProgressSink(choose_style("plain", False, sys.stderr)) as emit:
        patching.apply(
            patch,
            base,
            out,
            dtype=dtype,
            emit=emit,
            threads=threads,
            max_memory=max_memory,
            overwrite=overwrite,
        )
    click.echo(str(out))
