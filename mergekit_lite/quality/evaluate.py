"""Scores a model, and the parents that it is compared with, on the same data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mergekit_lite.errors import Problem
from mergekit_lite.quality.data import Data, Texts
from mergekit_lite.quality.faults import Kin, faults_of, kin_of
from mergekit_lite.quality.forward import Pass, Predicted, Settings, Tell, require_memory
from mergekit_lite.quality.scores import ChoiceScore, Evaluation, Likeness, Score, TextScore
from mergekit_lite.quality.sequences import Piece
from mergekit_lite.quality.subjects import Subject

if TYPE_CHECKING:
    from torch import Tensor


def evaluate(
    subject: Subject,
    parents: Sequence[Subject],
    data: Sequence[Data],
    settings: Settings | None = None,
    *,
    kin: Kin | None = None,
    tell: Tell = lambda text: None,
) -> Evaluation:
    """Run all data through the model and each parent, and score them.

    One layer of one model is in memory at a time, and the hidden states of the model and of one
    parent. Parents whose tokenizer gives the same ids are compared token by token as well.

    Args:
        subject: the model.
        parents: the base and the experts that it is compared with.
        data: what to score on, one or more.
        settings: how it is run.
        kin: what the model was made of, by which faults of its weights are told; by default the
            parents.
        tell: called with sentences on what it takes and how far it is.

    Raises:
        SourceError: transformers is not installed.
        RecipeError: transformers does not build an architecture.
        DataError: config, tokenizer and weights of a model do not fit each other.
        ResourceError: it would take more memory than is allowed.
    """
    settings = settings or Settings()
    own, *others = (Pass(each, data, settings) for each in (subject, *parents))
    need = require_memory((own, *others), settings.max_memory)
    tell(f"{_counted(own, len(others))}; about {need / 1e6:,.0f} MB of memory")
    scores: dict[str, dict[str, Score]] = {}
    likeness: dict[str, dict[str, Likeness]] = {}
    faults = faults_of(subject.model, kin_of(parents) if kin is None else kin)
    with _running(own, tell):
        scores[subject.name] = scores_of(own.pieces, own.predicted(), data, faults)
        for parent in others:
            with _running(parent, tell):
                name = parent.subject.name
                scores[name] = scores_of(parent.pieces, parent.predicted(), data, [])
                if [p.ids for p in own.pieces] == [p.ids for p in parent.pieces]:
                    likeness[name] = likeness_of(own.predicted(), parent.predicted(), data)
                else:
                    tell(f"{name} has another tokenizer: no KL, no agreement with it")
    versions = {each.name: each.version for each in data}
    return Evaluation(subject.model.reference, versions, scores, likeness, tuple(faults))


@contextmanager
def _running(each: Pass, tell: Tell) -> Iterator[None]:
    try:
        each.run(tell)
        yield
    finally:
        each.close()


def _counted(own: Pass, parents: int) -> str:
    tokens = sum(len(piece.ids) for piece in own.pieces)
    beside = f" and {parents} parents" if parents > 1 else " and a parent" if parents else ""
    return f"{tokens:,} tokens in {len(own.pieces):,} pieces through the model{beside}"


def scores_of(
    pieces: Sequence[Piece],
    predicted: Iterable[Predicted],
    data: Sequence[Data],
    faults: list[Problem],
) -> dict[str, Score]:
    """Return the scores of one model by data.

    Args:
        pieces: what the data is made of.
        predicted: what the model says of each.
        data: what to score on.
        faults: where losses that are no numbers are noted.
    """
    nats = {(p.data, p.unit, p.choice): 0.0 for p in pieces}
    counts = dict.fromkeys(nats, 0)
    nbytes = {(p.data, p.unit, p.choice): p.nbytes for p in pieces}
    for found in predicted:
        key = (found.piece.data, found.piece.unit, found.piece.choice)
        nats[key], counts[key] = _nats(found), len(found.targets)
    scored: dict[str, Score] = {}
    for one in data:
        if not all(math.isfinite(value) for key, value in nats.items() if key[0] == one.name):
            what = "the model predicts it with numbers that are not finite"
            faults.append(Problem(what, one.name, "look for NaN and infinities in its weights"))
        if isinstance(one, Texts):
            keys = [(one.name, unit, 0) for unit in range(len(one))]
            scored[one.name] = TextScore(
                tuple(nats[key] for key in keys),
                tuple(counts[key] for key in keys),
                tuple(nbytes[key] for key in keys),
            )
            continue
        chosen = []
        for unit, question in enumerate(one.questions):
            keys = [(one.name, unit, choice) for choice in range(len(question.choices))]
            losses = [nats[key] / nbytes[key] for key in keys]
            chosen.append(losses.index(min(losses)))
        answers = tuple(question.answer for question in one.questions)
        scored[one.name] = ChoiceScore(tuple(chosen), answers)
    return scored


def _nats(found: Predicted) -> float:
    import torch

    loss = torch.nn.functional.cross_entropy(found.logits, found.targets, reduction="none")
    return float(loss.double().sum())


def likeness_of(
    own: Iterable[Predicted], parent: Iterable[Predicted], data: Sequence[Data]
) -> dict[str, Likeness]:
    """Return how like a parent a model is, by text; both say something of the same pieces."""
    names = {one.name: len(one) for one in data if isinstance(one, Texts)}
    kl = {name: [0.0] * count for name, count in names.items()}
    agreed = {name: [0] * count for name, count in names.items()}
    tokens = {name: [0] * count for name, count in names.items()}
    for mine, theirs in zip(own, parent, strict=True):
        name, unit = mine.piece.data, mine.piece.unit
        if name in names:
            width = min(mine.logits.shape[1], theirs.logits.shape[1])
            kl[name][unit] = _divergence(mine.logits[:, :width], theirs.logits[:, :width])
            same = mine.logits.argmax(1) == theirs.logits.argmax(1)
            agreed[name][unit], tokens[name][unit] = int(same.sum()), len(same)
    return {
        name: Likeness(tuple(kl[name]), tuple(agreed[name]), tuple(tokens[name])) for name in names
    }


def _divergence(mine: Tensor, theirs: Tensor) -> float:
    import torch

    ours, parents = torch.log_softmax(mine, 1), torch.log_softmax(theirs, 1)
    found = torch.nn.functional.kl_div(ours, parents, reduction="none", log_target=True)
    return float(found.double().sum())
