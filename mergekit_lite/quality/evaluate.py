"""Scores a model, and the parents that it is compared with, on the same data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergekit_lite.errors import Problem
from mergekit_lite.quality.data import Data, Questions, Texts
from mergekit_lite.quality.faults import Kin, faults_of, kin_of
from mergekit_lite.quality.forward import Pass, Predicted, Settings, Tell, require_memory
from mergekit_lite.quality.harness import require_runnable, task_scores
from mergekit_lite.quality.labelled import Labelled, Pairs
from mergekit_lite.quality.scores import (
    ChoiceScore,
    Evaluation,
    Likeness,
    PairScore,
    Score,
    TextScore,
)
from mergekit_lite.quality.sequences import Piece
from mergekit_lite.quality.subjects import Subject
from mergekit_lite.quality.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor


def evaluate(
    subject: Subject,
    parents: Sequence[Subject],
    data: Sequence[Data],
    settings: Settings | None = None,
    *,
    tasks: Sequence[Task] = (),
    kin: Kin | None = None,
    tell: Tell = lambda text: None,
) -> Evaluation:
    """Run all data through the model and each parent, and score them.

    One layer of one model is in memory at a time, and the hidden states of the model and of one
    parent. Parents whose tokenizer gives the same ids are compared token by token as well.

    Args:
        subject: the model.
        parents: the base and the experts that it is compared with.
        data: what to score on.
        settings: how it is run.
        tasks: of lm-eval, which has a whole model in memory; one or more of data and tasks.
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
    subjects = (subject, *parents)
    if tasks:
        require_runnable(subjects, tasks, settings)
    passes = [Pass(each, data, settings) for each in subjects] if data else []
    if passes:
        need = require_memory(passes, settings.max_memory)
        tell(f"{_counted(passes[0], len(parents))}; about {need / 1e6:,.0f} MB of memory")
    faults = faults_of(subject.model, kin_of(parents) if kin is None else kin)
    scores: dict[str, dict[str, Score]] = {each.name: {} for each in subjects}
    likeness = _all_passed(passes, data, scores, faults, tell)
    for each in subjects if tasks else ():
        scores[each.name] |= task_scores(each, tasks, settings, tell)
    versions = {each.name: each.version for each in (*data, *tasks)}
    return Evaluation(subject.model.reference, versions, scores, likeness, tuple(faults))


def _all_passed(
    passes: Sequence[Pass],
    data: Sequence[Data],
    scores: dict[str, dict[str, Score]],
    faults: list[Problem],
    tell: Tell,
) -> dict[str, dict[str, Likeness]]:
    """Run all data through all models, the first beside each other; return likeness to those."""
    likeness: dict[str, dict[str, Likeness]] = {}
    if not passes:
        return likeness
    own, *others = passes
    with _running(own, tell):
        scores[own.subject.name] |= scores_of(own.pieces, own.predicted(), data, faults)
        for parent in others:
            with _running(parent, tell):
                name = parent.subject.name
                scores[name] |= scores_of(parent.pieces, parent.predicted(), data, [])
                if [p.ids for p in own.pieces] == [p.ids for p in parent.pieces]:
                    likeness[name] = likeness_of(own.predicted(), parent.predicted(), data)
                else:
                    tell(f"{name} has another tokenizer: no KL, no agreement with it")
    return likeness


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
        faults: where numbers that are not finite are noted.
    """
    kinds = {one.name: one for one in data}
    found = _Found({(p.data, p.unit, p.choice): p for p in pieces})
    for each in predicted:
        found.add(each, kinds[each.piece.data])
    scored = {}
    for one in data:
        if one.name in found.broken:
            what = "the model predicts it with numbers that are not finite"
            faults.append(Problem(what, one.name, "look for NaN and infinities in its weights"))
        scored[one.name] = found.score(one)
    return scored


class _Found:
    """What scores are made of, by data, unit and choice."""

    def __init__(self, pieces: Mapping[tuple[str, int, int], Piece]) -> None:
        self.pieces = pieces
        self.nats = dict.fromkeys(pieces, 0.0)
        self.counts = dict.fromkeys(pieces, 0)
        self.labels = dict.fromkeys(pieces, 0)
        self.vectors: dict[tuple[str, int, int], Tensor] = {}
        self.broken: set[str] = set()

    def add(self, said: Predicted, data: Data) -> None:
        """Note what a model says of a piece."""
        key = (said.piece.data, said.piece.unit, said.piece.choice)
        if isinstance(data, Labelled):
            self.labels[key] = int(said.logits[0].argmax())
            finite = bool(said.logits.isfinite().all())
        elif isinstance(data, Pairs):
            self.vectors[key] = said.vector
            finite = bool(said.vector.isfinite().all())
        else:
            self.nats[key], self.counts[key] = _nats(said), len(said.targets)
            finite = math.isfinite(self.nats[key])
        if not finite:
            self.broken.add(said.piece.data)

    def score(self, data: Data) -> Score:
        """Return the score of some data."""
        if isinstance(data, Texts):
            return self._of_texts(data)
        if isinstance(data, Labelled):
            keys = [(data.name, unit, 0) for unit in range(len(data))]
            answers = tuple(self.pieces[key].answer for key in keys)
            return ChoiceScore(tuple(self.labels[key] for key in keys), answers)
        if isinstance(data, Pairs):
            cosines = tuple(
                _cosine(*(self.vectors[data.name, unit, side] for side in (0, 1)))
                for unit in range(len(data))
            )
            return PairScore(cosines, tuple(pair.similarity for pair in data.pairs))
        chosen = []
        for unit, question in enumerate(data.questions):
            keys = [(data.name, unit, choice) for choice in range(len(question.choices))]
            losses = [self.nats[key] / self.pieces[key].nbytes for key in keys]
            chosen.append(losses.index(min(losses)))
        return ChoiceScore(tuple(chosen), tuple(question.answer for question in data.questions))

    def _of_texts(self, data: Texts) -> TextScore:
        keys = [(data.name, unit, 0) for unit in range(len(data))]
        return TextScore(
            tuple(self.nats[key] for key in keys),
            tuple(self.counts[key] for key in keys),
            tuple(self.pieces[key].nbytes for key in keys),
        )


def _nats(found: Predicted) -> float:
    import torch

    loss = torch.nn.functional.cross_entropy(found.logits, found.targets, reduction="none")
    return float(loss.double().sum())


def likeness_of(
    own: Iterable[Predicted], parent: Iterable[Predicted], data: Sequence[Data]
) -> dict[str, Likeness]:
    """Return how like a parent a model is, by data; both say something of the same pieces.

    Of questions there is nothing, and of labels only where both have as many.
    """
    kinds = {one.name: one for one in data if not isinstance(one, Questions)}
    units: dict[str, dict[tuple[int, int], _Alike]] = {name: {} for name in kinds}
    for mine, theirs in zip(own, parent, strict=True):
        if mine.piece.data in kinds:
            place = mine.piece.unit, mine.piece.choice
            units[mine.piece.data][place] = _alike(mine, theirs, kinds[mine.piece.data])
    found = {}
    for name, alike in units.items():
        each = [alike[place] for place in sorted(alike)]
        tokens = [one.tokens for one in each if one.tokens]
        found[name] = Likeness(
            tuple(one.kl for one in each if one.tokens),
            tuple(one.agreed for one in each if one.tokens),
            tuple(tokens),
            tuple(one.cosine for one in each if one.cosine is not None),
        )
    return found


@dataclass(frozen=True)
class _Alike:
    """What two models have in common on one piece."""

    kl: float
    agreed: int
    tokens: int
    cosine: float | None


def _alike(mine: Predicted, theirs: Predicted, data: Data) -> _Alike:
    widths = mine.logits.shape[1], theirs.logits.shape[1]
    cosine = _cosine(mine.vector, theirs.vector) if len(mine.vector) == len(theirs.vector) else None
    if isinstance(data, Pairs) or (isinstance(data, Labelled) and widths[0] != widths[1]):
        return _Alike(0.0, 0, 0, cosine)
    # Rows of padding may make one vocabulary wider than the other.
    width = min(widths)
    same = mine.logits.argmax(1) == theirs.logits.argmax(1)
    kl = _divergence(mine.logits[:, :width], theirs.logits[:, :width])
    return _Alike(kl, int(same.sum()), len(same), cosine)


def _cosine(one: Tensor, other: Tensor) -> float:
    size = float(one.norm() * other.norm())
    return float(one @ other) / size if size > 0 else 0.0


def _divergence(mine: Tensor, theirs: Tensor) -> float:
    import torch

    ours, parents = torch.log_softmax(mine, 1), torch.log_softmax(theirs, 1)
    found = torch.nn.functional.kl_div(ours, parents, reduction="none", log_target=True)
    return float(found.double().sum())
