"""`mergekit-lite export`: write a model in the format that a runtime loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note


@click.command(short_help="Write a model as codes and scales, or as a GGUF file.")
@click.argument("model")
@parameters.out("Folder to make with --quantize, file to make with --to gguf.")
@click.option("--quantize", metavar="SCHEME", help="Scheme of compressed-tensors, such as W4A16.")
@click.option("--group-size", type=int, metavar="N", help="Columns that share a scale; 0 for rows.")
@click.option("--scales", type=click.Choice(["max", "mse"]), help="How scales are found.")
@click.option("--ignore", multiple=True, metavar="NAME", help="Modules that stay as they are.")
@click.option("--to", "target", type=click.Choice(["gguf"]), help="Format of another runtime.")
@click.option("--type", "kind", default="F16", show_default=True, help="Type of a GGUF's matrices.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
def command(
    model: str,
    out: Path | None,
    quantize: str | None,
    target: str | None,
    kind: str,
    overwrite: bool,
    **more: Any,
) -> None:
    """Write MODEL, a folder or what a recipe's `base` may be, in the format of a runtime.

    With --quantize it becomes a folder that vLLM and transformers load, as `output: {quantize:
    ...}` of a recipe writes it. With --to gguf it becomes one file for llama.cpp, of type F16,
    BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, TQ1_0 or TQ2_0.

    \b
    Examples:
      mergekit-lite export ./merged --quantize W4A16 --scales mse -o merged-w4a16
      mergekit-lite export ./merged --to gguf --type Q8_0 -o merged.gguf
    """
    if out is None:
        raise click.UsageError("name what to make with -o/--out")
    if (quantize is None) == (target is None):
        raise click.UsageError("say either --quantize SCHEME or --to gguf")
    if quantize is not None:
        from mergekit_lite import api

        chosen = {key: value for key, value in more.items() if value not in (None, ())}
        base = str(Path(model).resolve()) if Path(model).exists() else model
        wanted = {"scheme": quantize, **chosen}
        api.run({"base": base, "output": {"quantize": wanted}}, out, overwrite=overwrite)
    else:
        from mergekit_lite.export.gguf.write import write_gguf

        done = write_gguf(model, kind, out, overwrite=overwrite)
        for text in done.notes:
            note(text)
        note(f"{done.tensors} tensors, {done.nbytes:,} bytes")
    click.echo(str(out))
