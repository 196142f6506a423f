"""Embeddings of whole texts, the same in all layers: where routers are trained from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.checkpoint import read_checkpoint
from mergekit_lite.errors import SourceError
from mergekit_lite.moe.gates._annotations import Length, Tokens
from mergekit_lite.moe.gates._measure import Reading, topics_of
from mergekit_lite.moe.gates._spec import GateRequest, Gates, gate
from mergekit_lite.ops._parameters import Doc

if TYPE_CHECKING:
    from mergekit_lite.moe.gates._measure import Array


@gate(title="Embeddings of texts", needs="texts")
def domain_embed(
    request: GateRequest,
    *,
    embeddings: Annotated[
        str | None,
        Doc(
            "a .safetensors file of another model's embeddings: for each expert a tensor of its"
            " name, one vector or one for each text; then no texts are needed"
        ),
    ] = None,
    normalize: Annotated[bool, Doc("give each row the norm 1")] = True,
    tokens: Tokens = 16384,
    length: Length = 512,
) -> Gates:
    """Point each row at the mean embedding of the expert's texts, in every layer.

    The way in which FlexOlmo's routers begin (with embeddings of GRIT), before they are trained. A
    text's embedding is the mean of the base's last hidden states over its tokens, at norm 1. What
    routers see lies elsewhere in most layers, so without training `ridge` routes better. A router
    that Nexus has trained is such a matrix too: its projected embeddings, with `normalize: false`.
    """
    import numpy as np

    facts: Mapping[str, Any] = {}
    if embeddings is not None:
        rows = _stored(request.texts / embeddings, request.experts)
    else:
        topics = topics_of(request.experts, request.texts)
        rows = request.measured().text_embeddings(topics, Reading(length, tokens))
        facts = {"tokens": tokens}
    if normalize:
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return Gates(dict.fromkeys(request.routers, rows.astype(np.float32)), facts)


def require_embeddings(file: Path, experts: Sequence[str], hidden: int) -> None:
    """Check by its header that a file has embeddings for all experts.

    Raises:
        SourceError: there is no such file, or it lacks an expert or has vectors of another width.
    """
    found = read_checkpoint(file).tensors
    for name in dict.fromkeys(experts):
        shape = found[name].shape if name in found else None
        if shape is None or len(shape) not in (1, 2) or shape[-1] != hidden or 0 in shape:
            has = "none" if shape is None else "x".join(map(str, shape))
            raise SourceError(
                f"`{file.name}` has no embedding for `{name}`: {has}, wanted {hidden} numbers, or"
                f" rows of as many",
                hint="a router sees vectors as wide as the model, so take an embedding that is, or"
                " project it",
            )


def _stored(file: Path, experts: Sequence[Mapping[str, Any]]) -> Array:
    import numpy as np
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        own = [opened.get_tensor(str(expert["expert"])).double().numpy() for expert in experts]
    return np.stack([np.atleast_2d(each).mean(0) for each in own])
