"""`mergekit-lite adapter xlora` and `adapter arrow`: several adapters as one folder for PEFT."""

from __future__ import annotations

from pathlib import Path

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note

_overwrite = click.option(
    "--overwrite", is_flag=True, help="Replace an output folder that holds a model or an adapter."
)
_temperature = click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="What the softmax over adapters divides by.",
)


def _named(out: Path | None) -> Path:
    if out is None:
        raise click.UsageError("name the folder to make with -o/--out")
    return out


@click.command()
@click.argument("base")
@click.argument("adapters", nargs=-1, required=True)
@parameters.out("Folder to make.")
@click.option("--layerwise", is_flag=True, help="Weigh adapters anew in each module.")
@click.option("--top-k", type=click.IntRange(1), help="Adapters that are active; by default all.")
@_temperature
@_overwrite
def xlora(
    base: str,
    adapters: tuple[str, ...],
    out: Path | None,
    layerwise: bool,
    top_k: int | None,
    temperature: float,
    overwrite: bool,
) -> None:
    """Put ADAPTERS of BASE under an X-LoRA classifier, which is to be trained.

    The classifier is all zeros: as it is, the result is the linear average of the adapters. The
    card in the folder says how PEFT loads it.

    \b
    Example:
      mergekit-lite adapter xlora ./base ./math-lora ./code-lora -o x-lora
    """
    from mergekit_lite import adapting

    target = _named(out)
    names = adapting.xlora_folder(
        base, adapters, target, layerwise=layerwise, top_k=top_k, temperature=temperature,
        overwrite=overwrite,
    )  # fmt: skip
    note(f"{len(names)} adapters: {', '.join(names)}")
    click.echo(str(target))


@click.command()
@click.argument("base")
@click.argument("adapters", nargs=-1, required=True)
@parameters.out("Folder to make.")
@click.option(
    "--general", multiple=True, help="Adapter of general texts, taken from each; may be repeated."
)
@click.option(
    "--top-k", type=click.IntRange(1), default=3, show_default=True, help="Adapters of a token."
)
@_temperature
@_overwrite
def arrow(
    base: str,
    adapters: tuple[str, ...],
    out: Path | None,
    general: tuple[str, ...],
    top_k: int,
    temperature: float,
    overwrite: bool,
) -> None:
    """Bring ADAPTERS of BASE to one rank and the same modules, as PEFT's Arrow wants them.

    With `--general`, the mean of those adapters' factors is taken from the factors of each
    (GenKnowSub). The card in the folder says how PEFT loads it.

    \b
    Example:
      mergekit-lite adapter arrow ./base ./math-lora ./code-lora -o arrow --top-k 2
    """
    from mergekit_lite import adapting

    target = _named(out)
    names = adapting.arrow_folder(
        base, adapters, target, general=general, top_k=top_k, temperature=temperature,
        overwrite=overwrite,
    )  # fmt: skip
    note(f"{len(names)} adapters: {', '.join(names)}")
    click.echo(str(target))
