"""NAEE: the experts that together come nearest to what the whole layer says (arXiv 2402.14800).

The distance of a subset S is the Frobenius norm, over a sample of tokens, of the difference
between the layer's output and the output when the router can choose from S alone. Both are weighted
sums of what experts say, so with G_t the inner products of what they say of token t and w the
weights, the squared distance is the sum over tokens of (w - w_S) G_t (w - w_S).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.errors import DataError
from mergekit_lite.moe.fewer.statistics import Numbers

EXHAUSTIVE = 16
"""Most experts of which all subsets are looked at."""
_AT_ONCE = 2**22
_TOLERANCE = 1e-3

Choices = NDArray[np.bool_]


class Found(NamedTuple):
    """The nearest subset.

    Attributes:
        kept: its experts, in order.
        distance: as a part of the norm of the layer's output.
        search: `exhaustive` or `greedy`.
    """

    kept: tuple[int, ...]
    distance: float
    search: str


class Layer:
    """The router of one layer and what its experts say of a sample of tokens.

    Args:
        measured: `logits`, `given`, `products` and `bias` of the layer.
        per_token: experts that a token passes.

    Raises:
        DataError: the router computes something else than is known here.
    """

    def __init__(self, measured: Mapping[str, Numbers], per_token: int) -> None:
        self.logits, self.bias = measured["logits"], measured["bias"]
        self.products = measured["products"]
        self.per_token = per_token
        self.tokens, self.experts = self.logits.shape
        whole = np.ones((1, self.experts), bool)
        given = measured["given"]
        forms = [(sigmoid, norm) for sigmoid in (False, True) for norm in (True, False)]
        for self.sigmoid, self.normalised in forms:
            self.whole = self.weights(whole, per_token)[0]
            # Routers may multiply all weights by one number, which changes no comparison.
            factor = float((self.whole * given).sum() / max((self.whole**2).sum(), 1e-30))
            if factor > 0 and np.abs(self.whole * factor - given).max() < _TOLERANCE * factor:
                return
        raise DataError(
            "the router of this model weighs experts in a way that is not known here",
            hint="take another method, such as `reap`",
        )

    def weights(self, subsets: Choices, per_token: int) -> Numbers:
        """Return the weights (subsets, tokens, experts) when routers choose from subsets alone."""
        gone = ~subsets[:, None, :]
        if self.sigmoid:
            scores = 1 / (1 + np.exp(-self.logits))[None]
            choice = np.where(gone, -np.inf, scores + self.bias)
        else:
            masked = np.where(gone, -np.inf, self.logits[None])
            scores = np.exp(masked - masked.max(-1, keepdims=True))
            scores = scores / scores.sum(-1, keepdims=True)
            choice = np.where(gone, -np.inf, scores + self.bias)
        last = np.argsort(-choice, axis=-1, kind="stable")[..., :per_token]
        picked = np.zeros(choice.shape)
        np.put_along_axis(picked, last, 1.0, -1)
        found = np.asarray(scores * picked)
        return found / found.sum(-1, keepdims=True) if self.normalised else found

    def distances(self, subsets: Choices) -> Numbers:
        """Return the squared distance of each subset, over all tokens."""
        per_token = min(self.per_token, int(subsets[0].sum()))
        each = max(_AT_ONCE // (self.tokens * self.experts), 1)
        found = []
        for first in range(0, len(subsets), each):
            apart = self.weights(subsets[first : first + each], per_token) - self.whole
            turned = np.matmul(apart.transpose(1, 0, 2), self.products)
            found.append((turned * apart.transpose(1, 0, 2)).sum((0, 2)))
        return np.concatenate(found)

    def size(self) -> float:
        """Return the squared norm of what the layer says of all tokens."""
        said = np.einsum("te,tef,tf->", self.whole, self.products, self.whole)
        return float(max(said, 1e-300))


def search(layer: Layer, keep: int) -> Found:
    """Return the nearest subset of `keep` experts; of equally near ones the first.

    All subsets are looked at where a layer has at most 16 experts. Of more, one expert at a time is
    left out, that whose loss changes least.
    """
    if layer.experts <= EXHAUSTIVE:
        best = _nearest(layer, keep)
        how = "exhaustive"
    else:
        best = np.ones(layer.experts, bool)
        while best.sum() > keep:
            fewer = np.repeat(best[None], int(best.sum()), 0)
            fewer[np.arange(len(fewer)), np.flatnonzero(best)] = False
            best = fewer[int(np.argmin(layer.distances(fewer)))]
        how = "greedy"
    distance = float(layer.distances(best[None])[0])
    kept = tuple(int(expert) for expert in np.flatnonzero(best))
    return Found(kept, float(np.sqrt(max(distance, 0.0) / layer.size())), how)


def _nearest(layer: Layer, keep: int) -> Choices:
    least, best = np.inf, np.zeros(layer.experts, bool)
    for subsets in _subsets(layer.experts, keep):
        distances = layer.distances(subsets)
        at = int(np.argmin(distances))
        if distances[at] < least:
            least, best = float(distances[at]), subsets[at]
    return best


def _subsets(experts: int, keep: int) -> Iterator[Choices]:
    listed = combinations(range(experts), keep)
    while some := list(islice(listed, 1024)):
        found = np.zeros((len(some), experts), bool)
        np.put_along_axis(found, np.array(some), True, 1)
        yield found
