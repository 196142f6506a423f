"""`mergekit-lite compress`: a fine-tune as a patch of its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note, print_json
from mergekit_lite.cli._patches import summary_text

if TYPE_CHECKING:
    from mergekit_lite.engine.events import Event
    from mergekit_lite.report.patches import PatchSummary

METHODS = (
    "bitdelta",
    "compeft",
    "delta_come",
    "intq",
    "lowrank_sparse",
    "rtvq",
    "svd",
    "topk_sparse",
    "tvq",
    "ultradelta",
)


def _note(event: Event) -> None:
    if event.kind == "note":
        note(event.text)


def _show(made: dict[str, PatchSummary], out: Path, *, as_json: bool) -> None:
    """Tell what experts that share a file have become."""
    if as_json:
        print_json({name: found.plain() for name, found in made.items()})
        return
    for name, found in made.items():
        note(f"{name}:\n{summary_text(found, layers=False)}")
    click.echo(str(out))


@click.command(short_help="Compress a fine-tune into a patch of its base.")
@click.argument("expert", required=False)
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
@click.option(
    "--expert",
    "experts",
    multiple=True,
    callback=parameters.pairs,
    metavar="NAME=MODEL",
    help="rtvq: each of the experts that share a file, in place of EXPERT.",
)
@parameters.out("The file to make, NAME.safetensors; of rtvq the folder.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@parameters.as_json
def command(
    expert: str | None,
    base: str,
    method: str,
    keep: float | None,
    rank: int | None,
    bits: int | None,
    calibration: Path | None,
    others: dict[str, Any],
    experts: dict[str, str],
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
      mergekit-lite compress --base ./base --method rtvq --expert math=./math \\
        --expert code=./code -o patches
    """
    from mergekit_lite import patching

    if out is None:
        raise click.UsageError("name the file to make with -o/--out")
    if (method == "rtvq") != bool(experts) or bool(experts) == (expert is not None):
        raise click.UsageError(
            "give EXPERT; or, for --method rtvq alone, --expert NAME=MODEL for each expert"
        )
    named = {"keep": keep, "rank": rank, "bits": bits}
    given = {name: value for name, value in named.items() if value is not None}
    if experts:
        if bits is not None:
            others = {**others, "bits": bits}
        made = patching.compress_together(
            experts, base, out, overwrite=overwrite, emit=_note, **others
        )
        _show(made, out, as_json=as_json)
        return
    found = patching.compress(
        str(expert),
        base,
        out,
        method=method,
        overwrite=overwrite,
        calibration=calibration,
        emit=_note,
        **{**others, **given},
    )
    if as_json:
        print_json(found.plain())
        return
    note(summary_text(found, layers=False))
    click.echo(str(out))
