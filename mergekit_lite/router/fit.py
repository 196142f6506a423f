"""Fit a router to labelled texts by ridge regression."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_lite.calibrate.texts import Text
from mergekit_lite.errors import Problem, RecipeError, nearest
from mergekit_lite.router.features import Array, Features, Ngrams, matrix
from mergekit_lite.router.file import Router

PIECE = 600
"""Characters of a piece of running text."""


@dataclass(frozen=True)
class HeldOut:
    """How a router does on texts that it was not fitted to.

    Attributes:
        labels: rows and columns of `counts`.
        counts: texts of each label (rows) that went to each label (columns).
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def texts(self) -> int:
        """Number of texts."""
        return sum(map(sum, self.counts))

    @property
    def right(self) -> int:
        """Texts that went to their label."""
        return sum(row[index] for index, row in enumerate(self.counts))


@dataclass(frozen=True)
class Fitted:
    """A router and what is known of it."""

    router: Router
    held_out: HeldOut


def fit_router(
    texts: Sequence[tuple[str, str]],
    models: Mapping[str, str],
    held_out: Sequence[tuple[str, str]],
    *,
    features: Features | None = None,
    ridge: float = 0.1,
) -> Fitted:
    """Fit a linear classifier of texts in closed form.

    Minimised is the sum of squared differences to 1 for a text's label and 0 for the others, in
    which every label counts the same however many texts it has, plus `ridge` times the mean squared
    length of the centred vectors times the squared weights.

    Args:
        texts: pairs of a label and a text.
        models: label -> model, for every label; several labels may share one.
        held_out: pairs to measure on, not to fit.
        features: what is seen of a text; hashed n-grams by default.
        ridge: larger is smoother.

    Raises:
        RecipeError: fewer than two labels, a label without a model or a model without texts.
    """
    features = features or Ngrams()
    labels = tuple(sorted({label for label, _ in texts}))
    _require(labels, models, held_out)
    vectors = matrix(features, [text for _, text in texts])
    index = np.array([labels.index(label) for label, _ in texts])
    wanted = np.eye(len(labels))[index]
    share = (len(texts) / len(labels) / wanted.sum(0))[index]
    weights, bias = _solve(vectors, wanted, share, ridge)
    counts = tuple(int(each) for each in wanted.sum(0))
    router = Router(
        labels, dict(models), features, weights, bias, dict(zip(labels, counts, strict=True))
    )
    return Fitted(router, measure(router, held_out))


def measure(router: Router, texts: Sequence[tuple[str, str]]) -> HeldOut:
    """Return where a router sends labelled texts."""
    counts = np.zeros((len(router.labels), len(router.labels)), int)
    for label, text in texts:
        chosen = router.route(text).label
        counts[router.labels.index(label), router.labels.index(chosen)] += 1
    return HeldOut(router.labels, tuple(tuple(map(int, row)) for row in counts))


def _solve(vectors: Array, wanted: Array, share: Array, ridge: float) -> tuple[Array, Array]:
    """Return weights (labels, size) and bias (labels,)."""
    total = share.sum()
    center, mean = share @ vectors / total, share @ wanted / total
    root = np.sqrt(share)[:, None]
    seen, said = root * (vectors - center), root * (wanted - mean)
    penalty = ridge * max(float((seen**2).sum()) / len(seen), 1e-12)
    if len(seen) <= seen.shape[1]:
        inner = seen @ seen.T + penalty * np.eye(len(seen))
        found = seen.T @ np.linalg.solve(inner, said)
    else:
        inner = seen.T @ seen + penalty * np.eye(seen.shape[1])
        found = np.linalg.solve(inner, seen.T @ said)
    return found.T, mean - center @ found


def _require(
    labels: Sequence[str], models: Mapping[str, str], held_out: Sequence[tuple[str, str]]
) -> None:
    problems = []
    if len(labels) < 2:
        hint = "give texts of two labels or more, each `LABEL=FILE`"
        problems.append(
            Problem(f"there is nothing to choose between: {len(labels)} label", "", hint)
        )
    for label in sorted(set(labels) - models.keys()):
        problems.append(Problem(f"label `{label}` has no model", "", f"add `--model {label}=PATH`"))
    for label in sorted(models.keys() - set(labels)):
        hint = nearest(label, labels) or "give texts for it"
        problems.append(Problem(f"model of label `{label}`, of which there is no text", "", hint))
    for label in sorted({label for label, _ in held_out} - set(labels)):
        what = f"held-out texts of label `{label}`, of which there is no text to fit to"
        problems.append(Problem(what, "", nearest(label, labels)))
    if not held_out:
        what = "no text is held out, so nothing would be known of the router"
        problems.append(Problem(what, "", "give more texts, or `--held-out LABEL=FILE`"))
    if problems:
        raise RecipeError(problems)


def held_out_split(
    texts: Sequence[tuple[str, str]], part: float
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return texts to fit to and texts held out, by a hash of each text.

    The same text falls on the same side whatever else there is.
    """
    kept: list[tuple[str, str]] = []
    held: list[tuple[str, str]] = []
    for label, text in texts:
        digest = hashlib.sha256(text.encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        (held if place < part else kept).append((label, text))
    return kept, held


def labelled(texts: Sequence[Text]) -> list[tuple[str, str]]:
    """Return label and text of each text; running texts are cut at line ends into pieces."""
    found: list[tuple[str, str]] = []
    for text in texts:
        if text.messages:
            whole = "\n".join(turn["content"] for turn in text.messages if turn["role"] == "user")
            found.append((text.domain, whole))
        elif text.is_running:
            found += [(text.domain, piece) for piece in _pieces(text.text)]
        else:
            found.append((text.domain, text.text))
    return found


def _pieces(text: str) -> list[str]:
    pieces, piece = [], ""
    for line in text.splitlines():
        if piece and len(piece) + len(line) > PIECE:
            pieces.append(piece)
            piece = ""
        piece += f"{line}\n"
    return [piece for piece in (*pieces, piece) if piece.strip()]
