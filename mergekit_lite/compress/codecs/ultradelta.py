"""Few random entries of each matrix, more of where the difference varies more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import role_of
from mergekit_lite.compress._spec import CodecVector, Comparison, Facts, codec
from mergekit_lite.compress._types import Delta, Encoded
from mergekit_lite.compress.rounding import Levels, rounded
from mergekit_lite.compress.schemes import rice
from mergekit_lite.ops._parameters import Doc, Range
from mergekit_lite.ops._place import random_key
from mergekit_lite.ops._random import host_draws


def _treated(delta: Delta, params: Mapping[str, Any]) -> bool:
    outer = role_of(delta.name) in ("embedding", "head")
    return delta.is_matrix and (params["embeddings"] or not outer)


def _look(delta: Delta, params: Mapping[str, Any]) -> Facts | None:
    """Take down how much the entries vary, and the sum of the singular values if it is used."""
    if not _treated(delta, params):
        return None
    values = delta.values.astype(np.float64)
    return {"variance": float(values.var()), "trace": _trace_norm(delta, params)}


def _trace_norm(delta: Delta, params: Mapping[str, Any]) -> float:
    """Return the sum of the singular values, from the Gram matrix of the shorter side."""
    if params["gamma"] == 1:
        return 0.0
    import torch

    torch.set_num_threads(1)  # the same digits whatever the number of threads
    matrix = torch.from_numpy(delta.values).reshape(delta.shape)
    short = matrix if delta.shape[0] <= delta.shape[1] else matrix.T
    gram = torch.zeros((len(short), len(short)), dtype=torch.float64)
    for first in range(0, short.shape[1], 1024):
        part = short[:, first : first + 1024].double()
        gram.addmm_(part, part.T)
    return float(torch.linalg.eigvalsh(gram).clamp_min_(0).sqrt_().sum())


def _decide(found: Mapping[str, Facts], params: Mapping[str, Any]) -> Mapping[str, Facts]:
    """Give each third of the tensors, by variance, its part, and each tensor its factor."""
    order = sorted(found, key=lambda name: found[name]["variance"])
    traces = [facts["trace"] for facts in found.values()]
    least, span = min(traces, default=0.0), max(traces, default=0.0) - min(traces, default=0.0)
    decided = {}
    for third, names in enumerate(_thirds(order)):
        keep = min(max(params["keep"] + (third - 1) * params["spread"], 0.0), 1.0)
        for name in names:
            place = (found[name]["trace"] - least) / span if span else 0.0
            decided[name] = {"keep": keep, "factor": 1 - (1 - params["gamma"]) * place}
    return decided


def _thirds(order: Sequence[str]) -> list[Sequence[str]]:
    first, second = -(-len(order) // 3), -(-2 * len(order) // 3)
    if len(order) < 3:
        return [(), order, ()]
    return [order[:first], order[first:second], order[second:]]


@codec(
    title="UltraDelta",
    paper="Wang et al. 2025, arXiv 2505.13563",
    vectors=[
        CodecVector(
            [[6, -1, 1], [0.4, 0, 2.6]],
            [[6, -1, 1], [0, 0, 3]],
            {"bits": 3, "keep": 1.0, "gamma": 1.0},
            source="by hand: levels from -1 to 6, all of them kept",
        ),
        CodecVector(
            [[7, 7], [7, 7]],
            [[7, 7], [7, 7]],
            {"keep": 1.0, "gamma": 0.5},
            source="a matrix alone has the least trace norm, and the factor 1",
        ),
        CodecVector([[4, -3, 1], [0.5, 0, -2]], None, name="model.embed_tokens.weight"),
        CodecVector([4, -3, 1], None, name="model.norm.weight"),
    ],
    compares=Comparison(_look, _decide),
)
def ultradelta(
    delta: Delta,
    *,
    keep: Annotated[
        float, Range(above=0, at_most=1), Doc("part of a matrix's entries that is kept, about")
    ] = 0.05,
    spread: Annotated[
        float,
        Range(at_least=0, below=1),
        Doc("how much more the third of the matrices that varies most keeps, and the last less"),
    ] = 0.02,
    bits: Annotated[Literal[2, 3, 4, 8], Doc("bits of a kept entry")] = 4,
    gamma: Annotated[
        float,
        Range(above=0, at_most=1),
        Doc("factor of the matrix of largest trace norm; 1 spares the norms, which take long"),
    ] = 0.5,
    embeddings: Annotated[
        bool, Doc("compress embeddings and heads too, in place of storing them whole")
    ] = False,
    seed: Annotated[int, Range(at_least=0), Doc("of the choice")] = 0,
) -> Encoded | None:
    """Round to few levels, and keep a random part of the entries of each level.

    So the kept entries are spread as all are. They are multiplied by `factor / part`, where the
    factor falls evenly from 1, for the matrix of least trace norm, to `gamma`. Which third of the
    matrices a matrix is in follows from the variance of its entries. Norms, biases and, unless
    asked for, embeddings and heads are stored whole.
    """
    if not delta.facts:
        return None
    share = delta.facts["keep"]
    found = rounded(delta.values, bits)
    levels = found.codes.astype(np.float32) - np.float32(found.zero)
    levels[~_chosen(found, share, random_key(seed, "ultradelta", "", delta.name))] = 0
    kept = int(np.count_nonzero(levels))
    scale = found.scale * delta.facts["factor"] / share if kept else found.scale
    return rice.levelled(levels, found.zero, bits, scale=scale)


def _chosen(found: Levels, share: float, key: int) -> NDArray[np.bool_]:
    """Return which entries are kept: of each level those of least draws, ties by flat index."""
    chosen = np.zeros(found.codes.size, np.bool_)
    draws = host_draws(np.arange(found.codes.size, dtype=np.int64), key)
    seen = before = 0
    for level in np.unique(found.codes):
        places = np.flatnonzero(found.codes == level)
        seen += places.size
        until = int(share * seen + 0.5)
        order = np.argsort(draws[places], kind="stable")
        chosen[places[order[: until - before]]] = True
        before = until
    return chosen
