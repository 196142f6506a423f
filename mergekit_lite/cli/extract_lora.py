"""`mergekit-lite extract-lora`: take an adapter out of a fine-tuned model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note, print_json


@click.command(short_help="Take a LoRA adapter out of a fine-tuned model.")
@click.argument("model")
@click.option("--base", required=True, metavar="MODEL", help="The model it was tuned from.")
@parameters.out("Folder of the adapter to make.")
@click.option("--rank", type=click.IntRange(min=1), help="Rank of every module; 32 by default.")
@click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="In place of a rank: the least that holds this part of each delta's sum of squares.",
)
@click.option(
    "--max-rank", type=click.IntRange(min=1), help="With --energy: no module gets a higher rank."
)
@click.option("--exact", is_flag=True, help="The full SVD in place of the randomised one.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Dtype of what is stored.",
)
@parameters.threads
@click.option("--overwrite", is_flag=True, help="Replace an output folder that holds an adapter.")
@parameters.as_json
def command(
    model: str,
    base: str,
    out: Path | None,
    rank: int | None,
    energy: float | None,
    max_rank: int | None,
    exact: bool,
    dtype: str,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Take out of MODEL what it adds to its base, as a PEFT adapter of a low rank.

    Linear layers become factors; embeddings and norms that differ are stored whole. The folder
    appears complete or not at all; `extract_report.json` in it tells what each module lost.

    \b
    Examples:
      mergekit-lite extract-lora ./tuned --base ./base -o tuned-lora --rank 64
      mergekit-lite extract-lora ./tuned --base ./base -o tuned-lora --energy 0.95
    """
    from mergekit_lite import api

    if out is None:
        raise click.UsageError("name the folder to make with -o/--out")
    if rank is not None and energy is not None:
        raise click.UsageError("give --rank or --energy; --max-rank limits what --energy chooses")
    if max_rank is not None and energy is None:
        raise click.UsageError("--max-rank goes with --energy; give --rank alone")
    found = api.extract_lora(
        model,
        base,
        out,
        rank=rank,
        energy=energy,
        max_rank=max_rank,
        exact=exact,
        dtype=dtype,
        threads=threads,
        overwrite=overwrite,
    )
    worst = sorted(found.modules, key=lambda one: -one.error)[:5]
    note(
        f"{len(found.modules)} modules as factors, {len(found.saved)} stored whole,"
        f" {found.unchanged} tensors as in the base"
    )
    note(f"relative error of all deltas: {found.error:.3f}; the largest:")
    for one in worst:
        note(f"  {one.name}: {one.error:.3f} at rank {one.rank}")
    if as_json:
        print_json(asdict(found))
    else:
        click.echo(str(out))
