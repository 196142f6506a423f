"""`mergekit-lite adapter`: operations on adapters as files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note, print_json
from mergekit_lite.cli.adapter_together import arrow, xlora

_overwrite = click.option(
    "--overwrite", is_flag=True, help="Replace an output folder that holds a model or an adapter."
)


@click.group("adapter", short_help="Fold, mask, split off or route adapters.")
def command() -> None:
    """Operations on adapters as files."""


command.add_command(xlora)
command.add_command(arrow)


def _named(out: Path | None) -> Path:
    if out is None:
        raise click.UsageError("name the folder to make with -o/--out")
    return out


@command.command()
@click.argument("base")
@click.argument("adapters", nargs=-1, required=True)
@parameters.out("Folder of the model to make.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="bfloat16",
    show_default=True,
    help="What the weights are rounded to after each fold.",
)
@_overwrite
@parameters.as_json
def fold(
    base: str,
    adapters: tuple[str, ...],
    out: Path | None,
    dtype: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Fold ADAPTERS into BASE one after the other, and tell what rounding loses at each.

    The same as a recipe with `lora_fold`.

    \b
    Example:
      mergekit-lite adapter fold ./base ./first-lora ./second-lora -o folded
    """
    from mergekit_lite import api

    target = _named(out)
    found = api.fold_adapters(base, adapters, target, dtype=dtype, overwrite=overwrite)
    for one in found:
        note(f"{one.expert}: {one.lost:.1%} of its entries lost, relative error {one.error:.3g}")
    _told([asdict(one) for one in found], target, as_json)


@command.command("rose-mask")
@click.argument("adapter")
@parameters.out("Folder of the adapter to make.")
@click.option(
    "--keep",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.1,
    show_default=True,
    help="Part of each row of A and each column of B that is kept.",
)
@_overwrite
@parameters.as_json
def rose_mask(adapter: str, out: Path | None, keep: float, overwrite: bool, as_json: bool) -> None:
    """Keep only the largest entries of ADAPTER: of each row of A and each column of B.

    \b
    Example:
      mergekit-lite adapter rose-mask ./lora -o sparse-lora --keep 0.1
    """
    from mergekit_lite import api

    target = _named(out)
    _told(api.rose_mask(adapter, target, keep=keep, overwrite=overwrite), target, as_json)


@command.command("corda-split")
@click.argument("model")
@click.option(
    "--grams",
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="A safetensors file with the Gram matrix of each layer's inputs.",
)
@parameters.out("Folder of the adapter to make.")
@click.option("--rank", type=click.IntRange(min=1), default=32, show_default=True, help="Rank.")
@click.option(
    "--method",
    type=click.Choice(["ipm", "kpm"]),
    default="ipm",
    show_default=True,
    help="Split off what the inputs ask for (ipm), or what they ask for least (kpm).",
)
@_overwrite
@parameters.as_json
def corda_split(
    model: str,
    grams: Path,
    out: Path | None,
    rank: int,
    method: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Split the adapter off MODEL that training starts from in CorDA.

    What stays frozen is the model with the adapter at weight -1, which a recipe makes.

    \b
    Example:
      mergekit-lite adapter corda-split ./model --grams grams.safetensors -o start-lora
    """
    from mergekit_lite import api

    target = _named(out)
    found = api.corda_split(model, grams, target, rank=rank, method=method, overwrite=overwrite)
    note(f"{len(found)} modules split")
    _told(found, target, as_json)


def _told(value: Any, out: Path, as_json: bool) -> None:
    if as_json:
        print_json(value)
    else:
        click.echo(str(out))
