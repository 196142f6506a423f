"""Rows of a router that choose among the slices of a layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergekit_lite.moe.carve._layer import Layer, Split, chunks, normalised, silu
from mergekit_lite.ops._random import normals

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergekit_lite.moe.carve._layer import Floats

LARGEST = 0.01
"""What `epsilon: auto` brings the largest logit to, or at most half as much."""
LEAST = -24


@dataclass(frozen=True)
class Rows:
    """A router.

    Attributes:
        rows: (slices, d) in fp64, before they are made small.
        largest: size of its largest logit: of those seen, or of inputs whose mean square is 1.
        agreement: part of the slices with the largest contributions that it chooses, on the texts;
            None where no texts were run.
    """

    rows: NDArray[np.float64]
    largest: float
    agreement: float | None = None

    def epsilon(self) -> float:
        """Return the power of two that makes the largest logit small."""
        if not self.largest > 0:
            return 1.0
        return 2.0 ** min(max(math.floor(math.log2(LARGEST / self.largest)), LEAST), 0)


def router(method: str, layer: Layer, split: Split, *, per_token: int, penalty: float) -> Rows:
    """Return the rows of a router.

    Args:
        method: `ridge`, `factor`, `param`, `random` or `zeros`.
        layer: that is carved.
        split: into these slices.
        per_token: slices that a token passes.
        penalty: of `ridge` and `factor`.
    """
    import numpy as np

    shape = len(split.routed), layer.gate.shape[1]
    wanted = contributions(layer, split) if layer.inputs is not None else None
    if method == "ridge":
        if wanted is None:
            raise ValueError("no texts were run")
        rows = _fitted(layer.seen(), wanted, penalty)
    elif method == "factor":
        rows = _fitted(layer.seen(), nearest_parts(layer, split, per_token), penalty)
    elif method == "param":
        rows = np.stack([normalised(layer.gate[own]).mean(0, np.float64) for own in split.routed])
    elif method == "random":
        rows = normals(0, shape[0] * shape[1], layer.key).reshape(shape) * shape[1] ** -0.5
    else:
        rows = np.zeros(shape)
    if wanted is None:
        largest = float(np.linalg.norm(rows, axis=1).max()) * math.sqrt(shape[1])
        return Rows(rows, largest)
    logits = layer.seen() @ rows.T
    return Rows(rows, float(np.abs(logits).max()), agreement(logits, wanted, per_token))


def contributions(layer: Layer, split: Split) -> NDArray[np.float64]:
    """Return the norm of what each routed slice would add for each token, (tokens, slices)."""
    import numpy as np

    norms = [np.linalg.norm(said, axis=2) for said in _said(layer, split)]
    return np.concatenate(norms, axis=1).T.astype(np.float64)


def nearest_parts(layer: Layer, split: Split, per_token: int) -> NDArray[np.float64]:
    """Return 1 for the slices of each token that are nearest to their part of the whole.

    The whole is what all n routed slices say together; of the k that a token passes, each is to
    say k/n of it. Labelled are those k whose output has the least squared distance to that
    (FactorLLM, arXiv 2408.11855). Of shape (tokens, slices).
    """
    import numpy as np

    found = []
    for said in _said(layer, split):
        part = said.sum(0) * np.float32(per_token / len(said))
        distances = np.square(said - part).sum(2).T
        labels = np.zeros(distances.shape)
        nearest = np.argsort(distances, axis=1, kind="stable")[:, :per_token]
        np.put_along_axis(labels, nearest, 1.0, axis=1)
        found.append(labels)
    return np.concatenate(found)


def _said(layer: Layer, split: Split) -> Iterator[Floats]:
    """Yield what each routed slice would add, (slices, tokens, d), for some tokens at a time."""
    import numpy as np

    for tokens in chunks(layer.seen()):
        active = silu(tokens @ layer.gate.T) * (tokens @ layer.up.T)
        yield np.stack([active[:, own] @ layer.down[:, own].T for own in split.routed])


def agreement(logits: NDArray[np.float64], wanted: NDArray[np.float64], per_token: int) -> float:
    """Return the part of the largest contributions of each token that the logits choose too."""
    import numpy as np

    chosen, best = (
        np.argsort(-values, axis=1, kind="stable")[:, :per_token] for values in (logits, wanted)
    )
    return float((chosen[:, :, None] == best[:, None]).any(1).mean())


def _fitted(inputs: Floats, wanted: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    """Return the ridge regression of each slice's share of a token's contributions.

    Shares are taken against their mean over slices: what is common to all decides nothing.
    """
    import numpy as np

    whole = wanted / np.maximum(wanted.sum(1, keepdims=True), 1e-30)
    shares: NDArray[np.float64] = np.subtract(whole, whole.mean(1, keepdims=True))
    gram = np.zeros((inputs.shape[1],) * 2)
    totals = np.zeros((wanted.shape[1], inputs.shape[1]))
    first = 0
    for tokens in chunks(inputs):
        wide = tokens.astype(np.float64)
        gram += wide.T @ wide
        totals += shares[first : first + len(wide)].T @ wide
        first += len(wide)
    ridge = penalty * np.trace(gram) / len(gram) * np.eye(len(gram))
    rows: NDArray[np.float64] = np.linalg.solve(gram + ridge, totals.T).T
    return rows
