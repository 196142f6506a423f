"""`mergekit-lite calibrate`: measure a model on texts."""

from __future__ import annotations

from pathlib import Path

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note, print_json


@click.command(short_help="Measure a model on texts, for methods that need data.")
@click.argument("model")
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="[DOMAIN=]FILE",
    help="Texts, .txt or .jsonl; may be repeated.",
)
@parameters.out("Folder of statistics to make.")
@click.option(
    "--collect",
    default="gram",
    show_default=True,
    metavar="KIND,...",
    help="What to collect: gram, router, hidden, rates, outputs, merging, fisher, gradient.",
)
@parameters.length
@parameters.max_tokens
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    help="Most tokens side by side, padding counted.",
)
@parameters.device
@parameters.pass_dtype
@parameters.max_memory
@click.option("--overwrite", is_flag=True, help="Replace a folder that holds statistics.")
@parameters.as_json
def command(
    model: str,
    data: tuple[str, ...],
    out: Path | None,
    collect: str,
    length: int,
    max_tokens: int,
    batch: int,
    device: str,
    dtype: str,
    max_memory: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Run texts through MODEL, one layer in memory at a time, and write statistics.

    \b
    gram    X^T X / n of the inputs of every linear layer: `file: STATS/gram` of regmean and lot
    router  sums over the inputs of feed-forward networks by domain, for gates
    hidden  hidden states between layers at each sample's last token, and their mean
    rates   which experts of a routed model are chosen, with what weight, how loud they are
    outputs what all experts would say of a sample of tokens, for the search of `prune: naee`
    merging what experts say on average, and how alike, for `moe: {merge: ...}`
    fisher  the diagonal of the Fisher information: `file: STATS/fisher` of fisher
    gradient mean magnitudes of gradients: `file: STATS/gradient` of tatr_gradient, on the base

    The last two also go back through the layers, and keep all hidden states on the disk meanwhile.
    MODEL is a causal language model, or an encoder; fisher also takes what gives texts labels.

    A .txt file is one running text; a line of a .jsonl file has "text" or "messages" and may have
    "domain". The domain of a file is its name up to the first dot, unless DOMAIN= is given. An
    interrupted run goes on after its last layer when the same command is given again.

    \b
    Examples:
      mergekit-lite calibrate ./math --data math.jsonl -o math-stats
      mergekit-lite calibrate ./base --data math.txt --data code.txt -o stats --collect router
    """
    from mergekit_lite.calibrate.run import Settings, calibrate
    from mergekit_lite.calibrate.texts import data_files, read_texts
    from mergekit_lite.sources import resolve

    if out is None:
        raise click.UsageError("name the folder to make with -o/--out")
    kinds = [kind.strip() for kind in collect.split(",") if kind.strip()]
    named = data_files(data)
    record = calibrate(
        resolve(model, relative_to=Path(), kind="checkpoint"),
        read_texts(named),
        out,
        kinds=kinds,
        settings=Settings(length, max_tokens, batch, device, dtype),
        max_memory=max_memory,
        overwrite=overwrite,
        tell=note,
        files=[one if isinstance(one, Path) else one[1] for one in named],
    )
    if as_json:
        print_json(record)
    else:
        click.echo(str(out))
