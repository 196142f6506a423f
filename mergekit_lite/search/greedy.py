"""Greedy soups: experts are added, the best first, as long as the score holds."""

from __future__ import annotations

from collections.abc import Sequence

from mergekit_lite.errors import MergekitLiteError, RecipeError
from mergekit_lite.plan.build import build, prepare
from mergekit_lite.quality.forward import Settings
from mergekit_lite.recipe.load import checked
from mergekit_lite.recipe.marks import Node, Problems
from mergekit_lite.search.run import Found, Tell, TellTrial, scorer_of, tested
from mergekit_lite.search.scorer import loss
from mergekit_lite.search.study import Strategy
from mergekit_lite.search.task import Task
from mergekit_lite.search.trials import Trial, best_of

METHOD = "greedy"


def greedy(
    task: Task,
    settings: Settings,
    *,
    threads: int | None = None,
    tell: Tell = lambda text: None,
    tell_trial: TellTrial = lambda trial: None,
) -> Found:
    """Choose which experts of a recipe have a part in it (Wortsman et al. 2022).

    Every expert is scored alone. Then, from the best one on, each is added to those that were
    kept, and kept itself if the score is no worse. The recipe's chain and weights stay as they
    are, so a plain average (`linear`) makes the paper's soups.

    Args:
        task: whose data decides.
        settings: how data is run.
        threads: workers of sweeps over the whole model.
        tell: called with sentences on how far it is.
        tell_trial: called with every set of experts that was scored.

    Raises:
        RecipeError: there are fewer than two experts, or the recipe cannot do without one.
        DataError, ResourceError: as `search`.
    """
    recipe = task.recipe_of(task.start)
    names = list(recipe.experts)
    if len(names) < 2:
        what = "there is one expert, and nothing to choose" if names else "there is no expert"
        raise RecipeError(what, recipe.at("experts"), "name two experts or more")
    plan, models = prepare(recipe)
    scorer = scorer_of(task, plan, models, settings, threads=threads, parts=1, tell=tell)
    trials: list[Trial] = []

    def scored(chosen: Sequence[str]) -> Trial:
        values = {"experts": " + ".join(chosen)}
        try:
            candidate = checked(task.tree, _only(task, chosen), Problems())
            inputs = {name: models[name] for name in ("base", *chosen)}
            (scores,) = scorer.growing(build(candidate, inputs))
            trial = Trial(len(trials), values, scores, loss(task.objectives, scores), "complete")
        except MergekitLiteError as error:
            what = error.problems[0].what
            trial = Trial(len(trials), values, (), float("inf"), "failed", what)
        trials.append(trial)
        tell_trial(trial)
        return trial

    try:
        alone = {name: scored([name]).loss for name in names}
        first, *others = sorted(names, key=lambda name: (alone[name], names.index(name)))
        kept, least = [first], alone[first]
        for name in others:
            more = [each for each in names if each in (*kept, name)]
            found = scored(more).loss
            if found <= least:
                kept, least = more, found
        best = best_of([t for t in trials if t.values["experts"] == " + ".join(kept)])
        root = _only(task, kept)
        final = build(checked(task.tree, root, Problems()), {n: models[n] for n in ("base", *kept)})
        return Found(
            task=task,
            strategy=Strategy(METHOD, trials=len(trials)),
            trials=tuple(trials),
            best=best,
            root=root,
            plan=final,
            test=tested(scorer, final),
            memory=scorer.memory,
        )
    finally:
        scorer.close()


def _only(task: Task, chosen: Sequence[str]) -> Node:
    """Return the recipe's tree with some of its experts."""
    root = task.root_of(task.start)
    experts = root.entries()["experts"]
    kept = {name: node for name, node in experts.entries().items() if name in chosen}
    return root.with_value({**root.entries(), "experts": experts.with_value(kept)})
