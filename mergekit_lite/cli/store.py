"""`mergekit-lite store`: several fine-tunes of one base in one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import bytes_text, note, print_json, table

if TYPE_CHECKING:
    from mergekit_lite.report.stores import StoreSummary

METHODS = ("emr", "t_switch", "tall_mask", "tsv_compress")


@click.group("store", short_help="Keep several fine-tunes of one base in one file.")
def command() -> None:
    """Keep several fine-tunes of one base in one file.

    What they have in common is stored once. Every task of a store can be made a model again, and is
    an expert of any recipe: `{store: FILE, task: NAME}`.
    """


@command.command()
@click.argument("recipe", required=False)
@click.option("--base", metavar="MODEL", help="The model that all experts were tuned from.")
@click.option(
    "--expert",
    "experts",
    multiple=True,
    callback=parameters.pairs,
    metavar="NAME=MODEL",
    help="A fine-tuned model and the name of its task; may be repeated.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="emr",
    show_default=True,
    help="How they are compressed; `docs/compression.md` describes each.",
)
@click.option(
    "--set",
    "params",
    multiple=True,
    callback=parameters.settings,
    metavar="NAME=VALUE",
    help="A parameter of the method; may be repeated.",
)
@parameters.out("The file to make, NAME.safetensors.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@parameters.as_json
def pack(
    recipe: str | None,
    base: str | None,
    experts: dict[str, str],
    method: str,
    params: dict[str, Any],
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Compress the experts of RECIPE, or those that are named, into one store.

    Of a recipe the base and the experts are taken, nothing else.

    \b
    Examples:
      mergekit-lite store pack --base ./base --expert math=./math --expert code=./code \\
        -o experts.safetensors
      mergekit-lite store pack recipe.yaml --method tsv_compress -o experts.safetensors
    """
    from mergekit_lite import storing

    if out is None:
        raise click.UsageError("name the file to make with -o/--out")
    if (recipe is None) == (base is None and not experts):
        raise click.UsageError("give either a recipe, or --base and --expert")
    options = {
        **params,
        "method": method,
        "overwrite": overwrite,
        "emit": lambda event: note(event.text) if event.kind == "note" else None,
    }
    if recipe is not None:
        found = storing.pack_recipe(recipe, out, **options)
    elif base is None or not experts:
        raise click.UsageError("--base and --expert belong together")
    else:
        found = storing.pack(experts, base, out, **options)
    if as_json:
        print_json(found.plain())
        return
    note(summary_text(found))
    click.echo(str(out))


@command.command("list")
@click.argument("store")
@parameters.as_json
def list_(store: str, as_json: bool) -> None:
    """Show the tasks of STORE, their sizes and what is missed of them; reads its header only.

    \b
    Example:
      mergekit-lite store list experts.safetensors
    """
    from mergekit_lite import storing

    found = storing.summary(store)
    if as_json:
        print_json(found.plain())
    else:
        click.echo(summary_text(found))


@command.command()
@click.argument("store")
@click.option("--task", required=True, metavar="NAME", help="Which task to make a model of.")
@click.option(
    "--base",
    metavar="MODEL",
    help="The model it was made against; by default what has its name beside the store or here.",
)
@parameters.out("Folder of the model to make.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Dtype of the model; the base's by default.",
)
@parameters.threads
@parameters.max_memory
@click.option("--overwrite", is_flag=True, help="Replace an output folder that holds a model.")
def materialize(
    store: str,
    task: str,
    base: str | None,
    out: Path | None,
    dtype: str | None,
    threads: int | None,
    max_memory: int | None,
    overwrite: bool,
) -> None:
    """Make the model of one task of STORE.

    Every entry is the base's plus the decoded difference, rounded once. A base that differs in a
    single tensor is refused, and so is a damaged store. The folder appears complete or not at all;
    an interrupted call is taken up by the same one.

    \b
    Example:
      mergekit-lite store materialize experts.safetensors --task math -o math
    """
    from mergekit_lite import storing
    from mergekit_lite.cli._progress import ProgressSink, choose_style

    if out is None:
        raise click.UsageError("name the folder to make with -o/--out")
    with ProgressSink(choose_style("plain", False, sys.stderr)) as emit:
        storing.materialize(
            store,
            task,
            out,
            base=base,
            dtype=dtype,
            emit=emit,
            threads=threads,
            max_memory=max_memory,
            overwrite=overwrite,
        )
    click.echo(str(out))


def summary_text(found: StoreSummary) -> str:
    """Return what a store holds, for a person to read."""
    settings = ", ".join(f"{name} {value}" for name, value in found.parameters.items())
    dense = len(found.tasks) * found.dense
    facts = {
        "kind": f"store of {len(found.tasks)} fine-tunes of `{found.base}`",
        "method": f"{found.method} ({settings})" if settings else found.method,
        "entries": f"{found.entries:,}",
        "file": f"{bytes_text(found.file_bytes)} for {bytes_text(dense)}: {found.ratio:.1f} times"
        f" smaller, {found.bits:.3f} bits an entry",
        "shared": bytes_text(found.shared),
    }
    width = max(map(len, facts)) + 2
    text = "\n".join(f"{name:{width}}{value}" for name, value in facts.items())
    rows = [
        (name, bytes_text(one.stored), one.compressed, one.whole, one.same, f"{one.norm:.3g}",
         f"{one.error:.3f}")
        for name, one in found.tasks.items()
    ]  # fmt: skip
    heads = ("task", "own", "compressed", "whole", "as the base", "norm", "error")
    return f"{text}\n\n{table(heads, rows, 'lrrrrrr')}"
