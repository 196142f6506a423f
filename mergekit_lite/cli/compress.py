"""`mergekit-lite compress`: a fine-tune as a patch of its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note, print_json
from mergekit_lite.cli._patches import summary_text

METHODS = (
    "bitdelta",
    "compeft",
    "delta_come",
    "intq",
    "lowrank_sparse",
    "svd",
    "topk_sparse",
    "tvq",
    "ultradelta",
)


@click.command(short_help="Compress a fine-tune into a patch of its base.")
@click.argument("expert")
@click.option("--base", required=True, metavar="MODEL", help="The model it was tuned from.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="compeft",
    show_default=True,
    help="The codec; `docs/compression.md` describes each.",
)
@click.option("--keep", type=float, help="Part of the entries that is kept.")
@click.option("--rank", type=int, help="svd, lowrank_sparse: rank of each matrix.")
@click.option("--bits", type=int, help="intq, tvq, ultradelta: bits of an entry.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="delta_come, bitdelta: Gram matrices made by `calibrate --collect gram`.",
)
@click.option(
    "--set",
    "others",
    multiple=True,
    callback=parameters.settings,
    metavar="NAME=VALUE",
    help="Any other parameter of the codec; may be repeated.",
)
@parameters.out("The file to make, NAME.safetensors.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@parameters.as_json
def command(
    expert: str,
    base: str,
    method: str,
    keep: float | None,
    rank: int | None,
    bits: int | None,
    calibration: Path | None,
    others: dict[str, Any],
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Compress what EXPERT, a model or a LoRA adapter, adds to its base into a patch.

    A patch is one file. `apply` makes the model of it again; every recipe takes it as an expert.

    \b
    Examples:
      mergekit-lite compress ./math --base ./base --keep 0.05 -o math.patch.safetensors
      mergekit-lite compress ./math --base ./base --method bitdelta --set scales=row \\
        -o math.patch.safetensors
    """
    from mergekit_lite import patching

    if out is None:
        raise click.UsageError("name the file to make with -o/--out")
    named = {"keep": keep, "rank": rank, "bits": bits}
    given = {name: value for name, value in named.items() if value is not None}
    found = patching.compress(
        expert,
        base,
        out,
        method=method,
        overwrite=overwrite,
        calibration=calibration,
        emit=lambda event: note(event.text) if event.kind == "note" else None,
        **{**others, **given},
    )
    if as_json:
        print_json(found.plain())
        return
    note(summary_text(found, layers=False))
    click.echo(str(out))
