"""Scores by window and by question, from which everything that is said of a model is summed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    """Which choice of each question a model takes.

    Attributes:
        chosen: the choice whose mean log-likelihood by byte is highest, the first of equal ones.
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


Score = TextScore | ChoiceScore


@dataclass(frozen=True)
class Likeness:
    """How like a parent a model predicts the windows of a text.

    Attributes:
        kl: Kullback-Leibler divergence of the model from the parent (in nats, the parent's
            probabilities weigh), of each window, summed over its tokens.
        agreed: tokens of each window at which both think the same token likeliest.
        tokens: that were predicted, of each window.
    """

    kl: tuple[float, ...]
    agreed: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def mean_kl(self) -> float:
        """Nats for a token; 0 where both predict the same."""
        return math.fsum(self.kl) / max(sum(self.tokens), 1)

    @property
    def agreement(self) -> float:
        """Part of the tokens at which both think the same token likeliest, 0 to 1."""
        return sum(self.agreed) / max(sum(self.tokens), 1)


@dataclass(frozen=True)
class Evaluation:
    """All scores of a model, and of the parents that it is compared with.

    Attributes:
        reference: of the model.
        versions: name of the data -> digest of what its scores depend on.
        scores: name of the model (`merge`, or a parent) -> name of the data -> score.
        likeness: name of a parent -> name of a text -> how like it the model is; nothing of
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
    chosen, answers = (tuple(map(int, record[key])) for key in ("chosen", "answers"))
    if len(chosen) != len(answers):
        raise ValueError("questions of unlike number")
    return ChoiceScore(chosen, answers)


def _number(value: float) -> float | None:
    """Return a number that JSON can hold; it has no NaN and no infinity."""
    return value if math.isfinite(value) else None
