"""`mergekit-lite moe probe`: where a routed model's gates send texts, and what that is worth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note, print_json, table

if TYPE_CHECKING:
    from mergekit_lite.calibrate.probe import Probe


@click.command("probe", short_help="Show where gates send texts, and what that is worth.")
@click.argument("model")
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="[EXPERT=]FILE",
    help="Held-out texts, .txt or .jsonl; may be repeated.",
)
@click.option(
    "--experts",
    metavar="NAME,...",
    help="Names of the experts in order; by default those of moe_manifest.json.",
)
@click.option(
    "--map",
    "chosen",
    multiple=True,
    metavar="DOMAIN=EXPERT",
    help="Whose texts a domain of another name has; may be repeated.",
)
@click.option("--no-baselines", is_flag=True, help="Leave out gateless and single experts.")
@click.option("--length", type=click.IntRange(min=2), default=512, show_default=True)
@click.option("--max-tokens", type=click.IntRange(min=2), default=8192, show_default=True)
@parameters.device
@parameters.as_json
def command(
    model: str,
    data: tuple[str, ...],
    experts: str | None,
    chosen: tuple[str, ...],
    no_baselines: bool,
    length: int,
    max_tokens: int,
    device: str,
    as_json: bool,
) -> None:
    """Run held-out texts of each expert through the routed MODEL.

    For each layer: the part of tokens, and of texts, whose first choice is an expert of their
    domain; the entropy of the router; how the choices fall on the experts; tokens whose choice
    hangs on rounding; the condition of the router's matrix. Then bits per byte of each domain: as
    the model routes, by the mean of all experts (gateless), and by each expert alone.

    A file's domain is its name up to the first dot, or what stands before `=`, or `domain` in a
    line of .jsonl; it belongs to the experts of that name.

    \b
    Examples:
      mergekit-lite moe probe ./routed --data math=heldout.jsonl --data code=heldout.txt
    """
    from mergekit_lite.calibrate.probe import belonging, expert_names, identical_layers, probe
    from mergekit_lite.calibrate.run import Settings, prepare, sentence
    from mergekit_lite.calibrate.texts import data_files, read_texts
    from mergekit_lite.calibrate.weights import Weights
    from mergekit_lite.sources import resolve

    found = resolve(model, relative_to=Path(), kind="checkpoint")
    texts = read_texts(data_files(data))
    settings = Settings(length=length, max_tokens=max_tokens, device=device)
    prepared = prepare(found, texts, [], settings)
    names = experts.split(",") if experts else expert_names(found.root, prepared.skeleton)
    pairs = dict(pair.split("=", 1) for pair in chosen if "=" in pair)
    belongs = belonging(prepared.samples.domains, names, pairs)
    note(sentence(prepared))
    weights = Weights(prepared.skeleton, {"model": found})
    try:
        result = probe(
            prepared,
            weights,
            names,
            belongs,
            baselines=not no_baselines,
            without=identical_layers(found.root),
            tell=note,
        )
    finally:
        weights.close()
    if as_json:
        print_json(_as_json(result))
        return
    click.echo(layer_table(result))
    click.echo()
    click.echo(loss_table(result))


def layer_table(found: Probe) -> str:
    """Return one line a layer, and the means."""
    rows = [
        (
            layer.layer,
            _percent(found.right(layer)),
            _percent(found.right(layer, texts=True)),
            f"{layer.entropy:.2f}",
            " / ".join(f"{100 * load:.0f}" for load in layer.load),
            _percent(layer.ties),
            f"{layer.condition:.3g}",
        )
        for layer in found.layers
    ]
    right, texts = found.right_in_all(), found.right_in_all(texts=True)
    rows.append(("all", _percent(right), _percent(texts), "", "", "", ""))  # type: ignore[arg-type]
    load = f"load of {' / '.join(found.experts)} (%)"
    header = ("layer", "tokens right", "texts right", "entropy", load, "near ties", "condition")
    return table(header, rows, "rrrrlrr")


def loss_table(found: Probe) -> str:
    """Return one line a way of routing: bits per byte by domain, and their mean."""
    rows = []
    for way, losses in found.losses.items():
        bits = [losses[domain].bits_per_byte for domain in found.domains]
        rows.append((way, *(f"{value:.3f}" for value in bits), f"{sum(bits) / len(bits):.3f}"))
    header = ("bits per byte", *found.domains, "mean")
    return table(header, rows, "l" + "r" * (len(found.domains) + 1))


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"


def _as_json(found: Probe) -> dict[str, object]:
    value = asdict(found)
    for entry, layer in zip(value["layers"], found.layers, strict=True):
        entry["tokens_right"] = found.right(layer)
        entry["texts_right"] = found.right(layer, texts=True)
    value["tokens_right"] = found.right_in_all()
    value["texts_right"] = found.right_in_all(texts=True)
    return value
