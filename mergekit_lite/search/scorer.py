"""Scores candidates on growing parts of the data, in the one model that is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mergekit_lite.engine.options import Options
from mergekit_lite.errors import DataError, Problem, ResourceError
from mergekit_lite.plan.estimate import estimate
from mergekit_lite.plan.types import Plan
from mergekit_lite.quality.data import Data
from mergekit_lite.quality.evaluate import likeness_of, scores_of
from mergekit_lite.quality.forward import Pass, Predicted, Settings
from mergekit_lite.quality.measures import measured
from mergekit_lite.quality.scores import ChoiceScore, Likeness, PairScore, Score, TextScore
from mergekit_lite.quality.subjects import MERGE, Subject, parents_of
from mergekit_lite.recipe.schema import SCORES, Objective
from mergekit_lite.search.held import Held, held
from mergekit_lite.search.task import Task
from mergekit_lite.sources import Model

Tell = Callable[[str], object]
PARTS = 4
"""Parts of the data after which a bad candidate may be left."""
Scores = Mapping[str, Score]
Units = TypeVar("Units", TextScore, ChoiceScore, PairScore, Likeness, Score)


@dataclass(frozen=True)
class Parent:
    """What a parent says of one part of the data.

    Attributes:
        scores: by data.
        predicted: token by token, where a candidate is compared so.
    """

    scores: Scores
    predicted: tuple[Predicted, ...] = ()


@dataclass(frozen=True)
class _Seen:
    """What one part of the data says of a candidate."""

    scores: Scores
    likeness: Mapping[str, Mapping[str, Likeness]]


class Scorer:
    """Merges candidates into one model in memory, and scores them.

    Args:
        task: the search.
        plan: of the first candidate.
        models: the inputs of all candidates.
        settings: how data is run.
        options: how to merge.
        parts: of the data.
        tell: called with sentences on what it takes.

    Raises:
        DataError: tokenizer, config and weights do not fit, or there is nothing to predict.
        RecipeError: the model cannot be built, or candidates cannot be merged into memory.
        ResourceError: it would take more memory than is allowed.
    """

    def __init__(
        self,
        task: Task,
        plan: Plan,
        models: Mapping[str, Model],
        settings: Settings,
        options: Options,
        *,
        parts: int = PARTS,
        tell: Tell = lambda text: None,
    ) -> None:
        self.task, self._settings = task, settings
        self._subject = Subject(MERGE, models["base"])
        self.model: Held = held(plan, models, settings, options)
        self._parts = self._split(parts)
        cost = estimate(plan, threads=1, max_memory=settings.max_memory, refuse=False)
        self.memory = self._need(cost.least_memory)
        tell(f"about {self.memory / 1e6:,.0f} MB of memory: one model and what runs it")
        self._parents = self._parent_scores(tell)

    @property
    def parts(self) -> int:
        """Parts in which the data is looked at."""
        return len(self._parts)

    def growing(self, plan: Plan) -> Iterator[tuple[float, ...]]:
        """Merge a candidate; yield its objectives over ever more of the data.

        Raises:
            DataError: the result, or a score, is no number.
        """
        self.model.merge(plan)
        seen: list[_Seen] = []
        for number, (data, run) in enumerate(self._parts):
            seen.append(self._score(run, data, number))
            yield self._values(seen)

    def test(self) -> dict[str, Score]:
        """Return the scores of the candidate in memory on the held-out data."""
        run = Pass(self._subject, self.task.test, self._settings, self.model.loaded)
        run.run(_nothing)
        faults: list[Problem] = []
        return scores_of(run.pieces, run.predicted(), self.task.test, faults)

    def close(self) -> None:
        """Close the weight files."""
        self.model.close()

    def _split(self, parts: int) -> list[tuple[tuple[Data, ...], Pass]]:
        whole = tuple(self.task.data)
        run = Pass(self._subject, whole, self._settings, self.model.loaded)
        if parts < 2:
            return [(whole, run)]
        split = [part for n in range(parts) if (part := _part(whole, n, parts))]
        try:
            return [
                (part, Pass(self._subject, part, self._settings, self.model.loaded))
                for part in split
            ]
        except DataError:  # a part alone has nothing to predict
            return [(whole, run)]

    def _need(self, merging: int) -> int:
        skeleton = self.model.skeleton
        width = 2 if self._settings.dtype == "bfloat16" else 4
        weights = sum(p.numel() for p in skeleton.model.parameters()) * width
        tokens = sum(len(piece.ids) for _, run in self._parts for piece in run.pieces)
        kept = len(self._likened()) * tokens * skeleton.vocabulary * 4
        need = int(weights) + merging + max(run.memory for _, run in self._parts) + kept
        limit = self._settings.max_memory
        if limit is not None and need > limit:
            raise ResourceError(
                f"the search needs about {need:,} bytes of memory, {weights:,} of them for the"
                f" model, and {limit:,} are allowed",
                "--max-memory",
                "search on a smaller model of the same kind, or with `--dtype bfloat16` or fewer"
                " --windows, or allow more memory",
            )
        return need

    def _likened(self) -> list[str]:
        """Return the parents that candidates are compared with token by token."""
        every = self.task.objectives
        named = [o.against for o in every if SCORES[o.score].against == "parent"]
        return list(dict.fromkeys(name for name in named if name is not None))

    def _parent_scores(self, tell: Tell) -> dict[str, list[Parent]]:
        found: dict[str, list[Parent]] = {}
        likened = self._likened()
        for parent in parents_of(self.task.recipe, self.task.parents):
            tell(f"scoring {parent.name}")
            found[parent.name] = [
                self._parent(parent, data, own, parent.name in likened) for data, own in self._parts
            ]
        return found

    def _parent(self, parent: Subject, data: tuple[Data, ...], own: Pass, likened: bool) -> Parent:
        run = Pass(parent, data, self._settings)
        try:
            run.run(_nothing)
            if likened and [p.ids for p in own.pieces] != [p.ids for p in run.pieces]:
                raise DataError(
                    f"`{parent.name}` has another tokenizer, so there is no KL and no agreement"
                    " with it",
                    hint="take the `recovery`, which compares whole texts",
                )
            scores = scores_of(run.pieces, run.predicted(), data, [])
            return Parent(scores, tuple(run.predicted()) if likened else ())
        finally:
            run.close()

    def _score(self, run: Pass, data: Sequence[Data], part: int) -> _Seen:
        faults: list[Problem] = []
        run.run(_nothing)
        scores = scores_of(run.pieces, run.predicted(), data, faults)
        if faults:
            raise DataError(faults)
        likeness = {
            name: likeness_of(run.predicted(), self._parents[name][part].predicted, data)
            for name in self._likened()
        }
        return _Seen(scores, likeness)

    def _values(self, seen: Sequence[_Seen]) -> tuple[float, ...]:
        """Return the objectives over the parts that have been looked at."""

        def value(objective: Objective) -> float:
            name, against = objective.data, objective.against
            other: Score | Likeness | None = None
            if against is not None and SCORES[objective.score].against == "parent":
                other = _joined([p.likeness[against][name] for p in seen if name in p.scores])
            elif against is not None:
                parts = self._parents[against][: len(seen)]
                other = _joined([p.scores[name] for p in parts if name in p.scores])
            own = _joined([p.scores[name] for p in seen if name in p.scores])
            return measured(objective.score, own, other, confidence=0).value

        return tuple(value(objective) for objective in self.task.objectives)


def _joined(found: Sequence[Units]) -> Units:
    """Return what was seen of several parts as of one."""
    fields = zip(*(vars(one).values() for one in found), strict=True)
    make: Callable[..., Units] = type(found[0])
    return make(*(sum(parts, ()) for parts in fields))


def _part(data: Sequence[Data], number: int, parts: int) -> tuple[Data, ...]:
    """Return a part of all data; the first has something of each."""

    def piece(one: Data) -> slice:
        first, last = (-(-len(one) * n // parts) for n in (number, number + 1))
        return slice(first, last)

    cut = [one.part(piece(one)) for one in data]
    return tuple(one for one in cut if len(one))


def _nothing(text: str) -> None:
    """Take a sentence on how far a pass is, and say nothing."""


def loss(objectives: Sequence[Objective], values: Sequence[float]) -> float:
    """Return one number for the values of several objectives, less is better.

    It is their mean by weight, those of which more is better with the other sign.
    """
    pairs = list(zip(objectives, values, strict=True))
    total = sum(o.weight * (-v if SCORES[o.score].rises else v) for o, v in pairs)
    return total / sum(o.weight for o in objectives)
