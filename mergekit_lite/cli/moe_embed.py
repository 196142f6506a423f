"""`mergekit-lite moe embed`: texts as vectors, from the routers of a routed model."""

from __future__ import annotations

from pathlib import Path

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import note


@click.command("embed", short_help="Make vectors of texts from a routed model's routers.")
@click.argument("model")
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="[DOMAIN=]FILE",
    help="Texts, .txt or .jsonl; may be repeated.",
)
@parameters.length
@parameters.max_tokens
@parameters.device
@parameters.max_memory
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File."
)
def command(
    model: str,
    data: tuple[str, ...],
    length: int,
    max_tokens: int,
    device: str,
    max_memory: int | None,
    out: Path,
) -> None:
    """Run texts through the routed MODEL and write a vector of each to a safetensors file.

    \b
    routing  (texts, layers x experts) probabilities of all routers at the last token
    hidden   (texts, d) the last hidden state at the last token
    joined   both side by side, each entry at mean 0 and spread 1 over the texts

    The order is that of the texts. The more texts at once, the better `joined` is scaled; to
    compare two texts, the paper (MoEE) adds the cosines of `hidden` and of `routing`.

    \b
    Example:
      mergekit-lite moe embed ./routed --data questions.jsonl -o vectors.safetensors
    """
    from safetensors.numpy import save_file

    from mergekit_lite.calibrate.estimate import require_memory
    from mergekit_lite.calibrate.expert_vectors import text_vectors
    from mergekit_lite.calibrate.run import Settings, prepare, sentence
    from mergekit_lite.calibrate.texts import data_files, read_texts
    from mergekit_lite.calibrate.weights import Weights
    from mergekit_lite.sources import resolve

    found = resolve(model, relative_to=Path(), kind="checkpoint")
    settings = Settings(length=length, max_tokens=max_tokens, device=device)
    prepared = prepare(found, read_texts(data_files(data)), [], settings)
    note(sentence(prepared))
    require_memory(prepared.estimate, max_memory)
    weights = Weights(prepared.skeleton, {"model": found})
    try:
        vectors = text_vectors(prepared, weights)
    finally:
        weights.close()
    out.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"routing": vectors.routing, "hidden": vectors.hidden, "joined": vectors.joined()}
    save_file(tensors, out, {"model": found.reference, "texts_sha256": prepared.samples.digest})
    click.echo(str(out))
