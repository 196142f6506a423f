"""The whole of a search: candidates, the best of them, and what it scores on held-out data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mergekit_lite.engine.options import Options
from mergekit_lite.plan.build import build, prepare
from mergekit_lite.plan.types import Plan
from mergekit_lite.quality.forward import Settings
from mergekit_lite.quality.scores import Score
from mergekit_lite.recipe.marks import Node
from mergekit_lite.search.scorer import PARTS, Scorer
from mergekit_lite.search.study import Search, Strategy
from mergekit_lite.search.task import Task
from mergekit_lite.search.trials import Trial, best_of, front_of
from mergekit_lite.sources import Model

Tell = Callable[[str], object]
TellTrial = Callable[[Trial], object]


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        task: what was searched.
        strategy: how.
        trials: all candidates.
        best: the one that is written.
        root: its recipe, as a tree.
        plan: what a run of it would do.
        front: candidates that no other beats in all objectives, where there are several.
        test: scores of the best on the held-out data.
        told_before: the held-out data has been looked at by an earlier call already.
        memory: bytes that it took, as said before it began.
    """

    task: Task
    strategy: Strategy
    trials: tuple[Trial, ...]
    best: Trial
    root: Node
    plan: Plan
    front: tuple[Trial, ...] = ()
    test: Mapping[str, Score] = field(default_factory=dict)
    told_before: bool = False
    memory: int = 0


def search(
    task: Task,
    strategy: Strategy,
    settings: Settings,
    *,
    threads: int | None = None,
    tell: Tell = lambda text: None,
    tell_trial: TellTrial = lambda trial: None,
) -> Found:
    """Choose the parameters of a recipe.

    Candidates are merged straight into one model in memory; no checkpoint is written.

    Args:
        task: what is chosen, and by what.
        strategy: how candidates are chosen.
        settings: how data is run.
        threads: workers of sweeps over the whole model.
        tell: called with sentences on how far it is.
        tell_trial: called with every candidate that was scored.

    Raises:
        RecipeError, SourceError, DataError, ResourceError: see `Scorer` and `Search`; or no
            candidate could be merged and scored.
    """
    start = task.start
    plan, models = prepare(task.recipe_of(start))
    study = Search(task.parameters, task.objectives, strategy, digest_of(task, plan))
    with_parts = strategy.prune and not strategy.many
    scorer = scorer_of(
        task, plan, models, settings, threads=threads, parts=PARTS if with_parts else 1, tell=tell
    )
    try:

        def candidate(values: Mapping[str, Any]) -> Iterator[tuple[float, ...]]:
            yield from scorer.growing(build(task.recipe_of(values), models))

        study.run(candidate, start, tell_trial)
        trials = study.trials()
        best = best_of(trials)
        front = front_of(trials, task.objectives) if len(task.objectives) > 1 else []
        chosen = build(task.recipe_of(best.values), models)
        before = bool(task.test) and not study.once("test")
        return Found(
            task=task,
            strategy=strategy,
            trials=tuple(trials),
            best=best,
            root=task.root_of(best.values),
            plan=chosen,
            front=tuple(front),
            test=tested(scorer, chosen),
            told_before=before,
            memory=scorer.memory,
        )
    finally:
        scorer.close()


def scorer_of(
    task: Task,
    plan: Plan,
    models: Mapping[str, Model],
    settings: Settings,
    *,
    threads: int | None,
    parts: int,
    tell: Tell,
) -> Scorer:
    """Return what scores the candidates of a search; see `Scorer`."""
    options = Options(threads=threads, max_memory=settings.max_memory)
    return Scorer(task, plan, models, settings, options, parts=parts, tell=tell)


def tested(scorer: Scorer, plan: Plan) -> dict[str, Score]:
    """Return what a candidate scores on the held-out data; nothing where there is none."""
    if not scorer.task.test:
        return {}
    scorer.model.merge(plan)
    return scorer.test()


def digest_of(task: Task, plan: Plan) -> str:
    """Return the sha256 of all that the scores of candidates depend on."""
    content = {
        "plan": plan.content_digest(),
        "parameters": [
            [p.name, p.low, p.high, p.log, p.step, list(p.labels)] for p in task.parameters
        ],
        "objectives": [o.model_dump(exclude={"where"}) for o in task.objectives],
        "data": [[one.name, one.version] for one in task.data],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
