"""`mergekit-lite convert`: turn a checkpoint of pickles into safetensors."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note, print_json

if TYPE_CHECKING:
    from mergekit_lite.engine.events import Event


@click.command(short_help="Turn a checkpoint of PyTorch pickles into safetensors.")
@click.argument("source", type=click.Path(path_type=Path))
@parameters.out("Folder to make.")
@parameters.as_json
def command(source: Path, out: Path | None, as_json: bool) -> None:
    """Turn SOURCE, a folder of `.bin` files or one such file, into safetensors.

    A pickle can run code when it is read. These are read as tensors and nothing else
    (`weights_only`), one file at a time; what asks for more is refused and not run. Tensors that
    share their numbers, such as a tied head, are written once. All other files are copied.

    \b
    Examples:
      mergekit-lite convert ./model -o ./model-safetensors
    """
    from mergekit_lite.export.convert import convert
    from mergekit_lite.plan.names import plural

    if out is None:
        raise click.UsageError("name the folder to make with -o/--out")
    done = convert(source, out, _tell)
    for name, owner in done.tied.items():
        note(f"{name} shares the numbers of {owner} and is written once")
    note(f"{plural(len(done.weight_map), 'tensor')} in {plural(len(done.files), 'file')}")
    if as_json:
        print_json(asdict(done))
    else:
        click.echo(str(out))


def _tell(event: Event) -> None:
    note(event.text)
