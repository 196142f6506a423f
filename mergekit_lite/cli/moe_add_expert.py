"""`mergekit-lite moe add-expert`: one expert more, without the texts of the others."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mergekit_lite.cli import _parameters as parameters


@click.command("add-expert", short_help="Add an expert to a model whose gates are `ridge`.")
@click.argument("routed", type=click.Path(path_type=Path))
@click.argument("expert")
@parameters.out("Folder to make.")
@click.option("--name", help="What the expert is called; by default the last part of its path.")
@click.option("--lora", is_flag=True, help="EXPERT is an adapter of the base.")
@click.option("--prompt", "prompts", multiple=True, help="A text that it is for; may be repeated.")
@click.option("--data", metavar="FILE", help="Texts that it is for, .txt or .jsonl.")
@click.option(
    "--from",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder from which ROUTED's recipe names its models; by default the current one.",
)
@click.option("--save-recipe", metavar="FILE", help="Also write the recipe that is run.")
@parameters.threads
@parameters.max_memory
@click.option("--overwrite", is_flag=True, help="Replace an output folder that holds a model.")
def command(
    routed: Path,
    expert: str,
    out: Path | None,
    name: str | None,
    lora: bool,
    prompts: tuple[str, ...],
    data: str | None,
    folder: Path | None,
    save_recipe: str | None,
    threads: int | None,
    max_memory: int | None,
    overwrite: bool,
) -> None:
    """Add the feed-forward layers of EXPERT to the model in the folder ROUTED.

    The routers become those of all texts together, though only the new expert's are read: the sums
    beside ROUTED stand for the rest. Everything else is as in ROUTED. It runs the recipe of
    ROUTED with one expert more and `gate: {method: ridge, earlier: ROUTED}`, so the models that
    ROUTED was made of must still be there, byte for byte.

    \b
    Examples:
      mergekit-lite moe add-expert ./routed ./law --data law.jsonl -o routed-with-law
      mergekit-lite moe add-expert ./routed ./law-lora --lora --prompt "The court finds" -o more
    """
    from mergekit_lite import api
    from mergekit_lite.cli._progress import ProgressSink, choose_style

    if out is None:
        raise click.UsageError("name the folder to make with -o/--out")
    with ProgressSink(choose_style("plain", False, sys.stderr)) as emit:
        api.add_expert(
            routed,
            expert,
            out,
            name=name,
            lora=lora,
            prompts=prompts,
            data=data,
            folder=folder,
            save_recipe=save_recipe,
            emit=emit,
            threads=threads,
            max_memory=max_memory,
            overwrite=overwrite,
        )
    click.echo(str(out))
