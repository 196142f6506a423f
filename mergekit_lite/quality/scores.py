"""Scores by window and by question, from which everything that is said of a model is summed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.errors import Problem


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts the windows of a text.

    Attributes:
        nats: loss of each window, summed over its tokens.
        tokens: that were predicted, of each window.
        nbytes: bytes that those stand for.
    """

    nats: tuple[float, ...]
    tokens: tuple[int, ...]
    nbytes: tuple[int, ...]

    @property
    def bits_per_byte(self) -> float:
        """Mean bits that a byte needs; lower is better, whatever the tokenizer."""
        return math.fsum(self.nats) / math.log(2) / max(sum(self.nbytes), 1)

    @property
    def perplexity(self) -> float:
        """exp of the mean loss of a token; only models of one tokenizer compare."""
        mean = math.fsum(self.nats) / max(sum(self.tokens), 1)
        return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True)
class ChoiceScore:
    """Which choice of each question, or label of each text, a model takes.

    Attributes:
        chosen: the choice whose mean log-likelihood by byte is highest, or the label whose logit
            is, the first of equal ones.
        answers: the right ones.
    """

    chosen: tuple[int, ...]
    answers: tuple[int, ...]

    @property
    def right(self) -> tuple[bool, ...]:
        """Whether each question is answered right."""
        return tuple(c == a for c, a in zip(self.chosen, self.answers, strict=True))

    @property
    def accuracy(self) -> float:
        """Part of the questions that are answered right."""
        return sum(self.right) / len(self.answers)


@dataclass(frozen=True)
class PairScore:
    """How alike a model finds pairs of texts.

    Attributes:
        cosines: of the vectors of both texts of each pair.
        similarities: that people gave them.
    """

    cosines: tuple[float, ...]
    similarities: tuple[float, ...]

    @property
    def ranks(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ranks of both, from 0; equal values share the mean of theirs."""
        return _ranks(self.cosines), _ranks(self.similarities)

    @property
    def correlation(self) -> float:
        """Spearman's correlation of both, -1 to 1; 0 where all cosines are equal."""
        return float(correlation(*self.ranks, np.ones(len(self.cosines))))


@dataclass(frozen=True)
class TaskScore:
    """What a model scores at a task of lm-eval.

    Attributes:
        metric: of the task.
        values: of each question; more is better.
    """

    metric: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over all questions."""
        return math.fsum(self.values) / max(len(self.values), 1)


Score = TextScore | ChoiceScore | PairScore | TaskScore


def correlation(one: Any, other: Any, counts: Any) -> Any:
    """Return Pearson's correlation of two rows, each entry counted some times.

    Args:
        one: (n,).
        other: (n,).
        counts: (..., n).
    """
    total = counts.sum(-1, keepdims=True)
    x = one - (counts * one).sum(-1, keepdims=True) / total
    y = other - (counts * other).sum(-1, keepdims=True) / total
    below = np.sqrt((counts * x * x).sum(-1) * (counts * y * y).sum(-1))
    return (counts * x * y).sum(-1) / np.maximum(below, 1e-300)


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes + 1) / 2)[group]


@dataclass(frozen=True)
class Likeness:
    """How like a parent a model is on the windows of a text, on texts with labels, or on pairs.

    A label counts as one token. Of pairs there are similarities alone, of each text.

    Attributes:
        kl: Kullback-Leibler divergence of the model from the parent (in nats, the parent's
            probabilities weigh), of each unit, summed over its tokens.
        agreed: tokens of each unit at which both think the same token likeliest.
        tokens: that were predicted, of each unit.
        similarities: cosine of both models' vectors of each unit; empty where their widths differ.
    """

    kl: tuple[float, ...]
    agreed: tuple[int, ...]
    tokens: tuple[int, ...]
    similarities: tuple[float, ...] = ()

    @property
    def mean_kl(self) -> float:
        """Nats for a token; 0 where both predict the same."""
        return math.fsum(self.kl) / max(sum(self.tokens), 1)

    @property
    def agreement(self) -> float:
        """Part of the tokens at which both think the same token likeliest, 0 to 1."""
        return sum(self.agreed) / max(sum(self.tokens), 1)

    @property
    def similarity(self) -> float:
        """Mean cosine of both models' vectors."""
        return math.fsum(self.similarities) / max(len(self.similarities), 1)


@dataclass(frozen=True)
class Evaluation:
    """All scores of a model, and of the parents that it is compared with.

    Attributes:
        reference: of the model.
        versions: name of the data -> digest of what its scores depend on.
        scores: name of the model (`merge`, or a parent) -> name of the data -> score.
        likeness: name of a parent -> name of the data -> how like it the model is; nothing of
            parents with another tokenizer.
        faults: what is wrong with the model, whatever its scores.
    """

    reference: str
    versions: Mapping[str, str]
    scores: Mapping[str, Mapping[str, Score]]
    likeness: Mapping[str, Mapping[str, Likeness]] = field(default_factory=dict)
    faults: tuple[Problem, ...] = ()

    @property
    def data(self) -> Sequence[str]:
        """Names of the data, in order."""
        return tuple(self.versions)


def score_record(score: Score) -> dict[str, Any]:
    """Return a score as JSON: what it comes to, and the units that it is summed from."""
    if isinstance(score, TextScore):
        return {
            "bits_per_byte": _number(score.bits_per_byte),
            "perplexity": _number(score.perplexity),
            "nats": [_number(value) for value in score.nats],
            "tokens": list(score.tokens),
            "bytes": list(score.nbytes),
        }
    if isinstance(score, TaskScore):
        return {"metric": score.metric, "mean": score.mean, "values": list(score.values)}
    if isinstance(score, PairScore):
        return {
            "correlation": _number(score.correlation),
            "cosines": [_number(value) for value in score.cosines],
            "similarities": list(score.similarities),
        }
    return {
        "accuracy": score.accuracy,
        "chosen": list(score.chosen),
        "answers": list(score.answers),
    }


def score_of(record: Mapping[str, Any]) -> Score:
    """Return a score from its JSON.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    if "nats" in record:
        nats = tuple(map(float, record["nats"]))
        tokens, nbytes = (tuple(map(int, record[key])) for key in ("tokens", "bytes"))
        if not len(nats) == len(tokens) == len(nbytes):
            raise ValueError("windows of unlike number")
        return TextScore(nats, tokens, nbytes)
    if "metric" in record:
        return TaskScore(str(record["metric"]), tuple(map(float, record["values"])))
    if "cosines" in record:
        cosines, given = (tuple(map(float, record[key])) for key in ("cosines", "similarities"))
        if len(cosines) != len(given):
            raise ValueError("pairs of unlike number")
        return PairScore(cosines, given)
    chosen, answers = (tuple(map(int, record[key])) for key in ("chosen", "answers"))
    if len(chosen) != len(answers):
        raise ValueError("questions of unlike number")
    return ChoiceScore(chosen, answers)


def _number(value: float) -> float | None:
    """Return a number that JSON can hold; it has no NaN and no infinity."""
    return value if math.isfinite(value) else None
