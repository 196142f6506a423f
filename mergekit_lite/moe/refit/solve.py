"""One router in place of several: what comes nearest to all of them on texts of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
_BLOCK = 4096
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Domain:
    """The texts of one model and its router.

    Attributes:
        inputs: what routers are shown of them, (tokens, hidden).
        rows: its router, (experts, hidden).
    """

    inputs: Floats
    rows: Array

    def blocks(self) -> Iterator[Array]:
        """Yield the inputs in fp64, some tokens at a time."""
        for first in range(0, len(self.inputs), _BLOCK):
            yield self.inputs[first : first + _BLOCK].astype(np.float64)


def start_of(domains: Sequence[Domain]) -> Array:
    """Return the mean of all routers, where the fit begins."""
    mean: Array = sum((one.rows for one in domains[1:]), domains[0].rows) / len(domains)
    return mean


def regmean(domains: Sequence[Domain], *, shrink: float) -> Array:
    """Return the router whose logits come nearest to those of each, on the texts of each.

    The sum over domains of the mean of |(W - W_d) x|^2 is least; every domain counts alike
    (RegMean, arXiv:2212.09849). Directions that no text has stay those of the mean.

    Args:
        domains: one or more.
        shrink: factor of what the Gram matrices have beside their diagonals.
    """
    start = start_of(domains)
    grams = [_shrunk(_gram(one), shrink) for one in domains]
    total: Array = sum(grams[1:], grams[0])
    right: Array = sum(
        ((one.rows - start) @ gram for one, gram in zip(domains, grams, strict=True)),
        np.zeros_like(start),
    )
    tiny = 1e-10 * np.trace(total) / len(total) + np.finfo(float).tiny
    found: Array = start + np.linalg.solve(total + tiny * np.eye(len(total)), right.T).T
    return found


def harc(
    domains: Sequence[Domain], *, shrink: float, iterations: int, sigmoid: bool
) -> tuple[Array, int]:
    """Return the router that comes nearest in what it chooses, and the steps that it took.

    To second order, the divergence of its probabilities from those of each router is least: the sum
    over domains of the mean of ((W - W_d) x)^T H ((W - W_d) x), where H is diag(p) - p p^T of
    the domain's own softmax p, or diag(s (1 - s)) of its sigmoids s (arXiv:2606.03391; of sigmoids
    it says nothing). Solved by conjugate gradients from the mean of the routers, divided by the
    diagonal. One vector added to all rows changes no softmax; the mean row stays that of the start.

    Args:
        domains: one or more.
        shrink: factor of what couples one input entry to another.
        iterations: most steps.
        sigmoid: scores are sigmoids.
    """
    start = start_of(domains)
    curves = [_Curvature(one, shrink, sigmoid=sigmoid) for one in domains]
    right = np.zeros_like(start)
    for one, curve in zip(domains, curves, strict=True):
        wanted = one.rows - start
        if not sigmoid:
            wanted = wanted - wanted.mean(0)
        right += curve.times(wanted)
    diagonal: Array = sum((curve.diagonal for curve in curves), np.zeros_like(start))
    change, steps = _conjugate_gradients(curves, right, diagonal, iterations)
    if not sigmoid:
        change -= change.mean(0)
    return start + change, steps


class _Curvature:
    """The second derivative of one domain's divergence, as what it makes of a change of rows."""

    def __init__(self, domain: Domain, shrink: float, *, sigmoid: bool) -> None:
        self._domain, self._shrink, self._sigmoid = domain, shrink, sigmoid
        self._scores = [_scores(x @ domain.rows.T, sigmoid=sigmoid) for x in domain.blocks()]
        self.diagonal: Array = sum(
            ((p * (1 - p)).T @ (x * x) for p, x in zip(self._scores, domain.blocks(), strict=True)),
            np.zeros_like(domain.rows),
        ) / len(domain.inputs)

    def times(self, change: Array) -> Array:
        """Return the product with a change of all rows, (experts, hidden)."""
        total = np.zeros_like(change)
        for p, x in zip(self._scores, self._domain.blocks(), strict=True):
            moved = p * (x @ change.T)
            if self._sigmoid:
                moved *= 1 - p
            else:
                moved -= p * moved.sum(1, keepdims=True)
            total += moved.T @ x
        whole = total * (self._shrink / len(self._domain.inputs))
        whole += (1 - self._shrink) * self.diagonal * change
        return whole


def _conjugate_gradients(
    curves: Sequence[_Curvature], right: Array, diagonal: Array, iterations: int
) -> tuple[Array, int]:
    change, residual = np.zeros_like(right), right.copy()
    wanted = _TOLERANCE * np.linalg.norm(right)
    if wanted == 0:
        return change, 0
    scale = 1 / np.maximum(diagonal, 1e-12 * diagonal.max())
    direction = scale * residual
    product = float((residual * direction).sum())
    for step in range(1, iterations + 1):
        curved: Array = sum((curve.times(direction) for curve in curves), np.zeros_like(right))
        along = float((direction * curved).sum())
        if along <= 0:  # rounding: nothing is left to gain in this direction
            return change, step
        change += product / along * direction
        residual -= product / along * curved
        if np.linalg.norm(residual) <= wanted:
            return change, step
        preconditioned = scale * residual
        following = float((residual * preconditioned).sum())
        direction = preconditioned + following / product * direction
        product = following
    return change, iterations


def _scores(logits: Array, *, sigmoid: bool) -> Array:
    if sigmoid:
        positive: Array = 1 / (1 + np.exp(-np.abs(logits)))
        return np.where(logits >= 0, positive, 1 - positive)
    raised = np.exp(logits - logits.max(1, keepdims=True))
    found: Array = raised / raised.sum(1, keepdims=True)
    return found


def _gram(domain: Domain) -> Array:
    total: Array = sum((x.T @ x for x in domain.blocks()), np.zeros((domain.rows.shape[1],) * 2))
    return total / len(domain.inputs)


def _shrunk(gram: Array, shrink: float) -> Array:
    whole: Array = shrink * gram
    np.fill_diagonal(whole, gram.diagonal())
    return whole
