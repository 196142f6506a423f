"""Arguments and options that several verbs share, spelt the same in each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def _bytes(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Return the bytes that a size such as `2GB`, `512MiB` or a plain number stands for."""
    if value is None:
        return None
    from mergekit_lite.recipe import parse_size

    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def _sized(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return a size as it was written, once it is known to be one."""
    _bytes(context, parameter, value)
    return value


def pairs(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    """Return the texts that options `NAME=VALUE` give, by name."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"`{text}` is not NAME=VALUE", context, parameter)
        if name in found:
            raise click.BadParameter(f"`{name}` is given twice", context, parameter)
        found[name] = value
    return found


def settings(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, Any]:
    """Return the parameters that options `NAME=VALUE` give, values read as YAML."""
    import yaml

    return {name: yaml.safe_load(text) for name, text in pairs(context, parameter, given).items()}


class _NewFolder(click.Path):
    """A folder to make. An empty name, often a variable that is not set, is not the current one."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        if not os.fspath(value):
            self.fail("is empty; name a folder", param, ctx)
        return Path(super().convert(value, param, ctx)).expanduser()  # type: ignore[arg-type]


def out(text: str) -> Callable[[Command], Command]:
    """Return the option that names the output folder.

    Args:
        text: what the verb does with it.
    """
    return click.option("-o", "--out", type=_NewFolder(), metavar="PATH", help=text)


recipe = click.argument("recipe", type=click.Path(path_type=Path))
changes = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="A.B=VALUE",
    help="Change an entry of the recipe; may be repeated.",
)
shard_size = click.option(
    "--shard-size",
    callback=_sized,
    metavar="SIZE",
    help="Largest output file in bytes, such as 5GB.",
)
threads = click.option(
    "--threads", type=click.IntRange(min=1), help="Workers; one for each core by default."
)
max_memory = click.option(
    "--max-memory", callback=_bytes, metavar="SIZE", help="Cap on resident memory, such as 2GB."
)
length = click.option(
    "--length",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Most tokens of a sample.",
)
max_tokens = click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=16384,
    show_default=True,
    help="Most tokens of a domain.",
)
device = click.option("--device", default="cpu", show_default=True, help="Where it is computed.")
pass_dtype = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Dtype of the forward pass; sums are fp64 always.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def all_changes(changes: Sequence[str], shard_size: str | None) -> list[str]:
    """Return the recipe changes of `--set`, then of the options that stand for one."""
    return [*changes, *([f"output.shard_size={shard_size}"] if shard_size else [])]
