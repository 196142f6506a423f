"""AdaMerging: a weight for every expert and layer, learnt by making predictions surer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.errors import DataError, Problem, RecipeError, ResourceError
from mergekit_lite.ops import registry
from mergekit_lite.plan.build import build, prepare
from mergekit_lite.plan.types import Plan
from mergekit_lite.quality.data import Texts
from mergekit_lite.quality.forward import Settings
from mergekit_lite.recipe.load import checked
from mergekit_lite.recipe.marks import Node, Problems, from_plain
from mergekit_lite.recipe.schema import Recipe
from mergekit_lite.search.entropy import Entropy, vectors_of
from mergekit_lite.search.run import Found, Tell, TellTrial, scorer_of, tested
from mergekit_lite.search.scorer import Scorer, loss
from mergekit_lite.search.study import Strategy
from mergekit_lite.search.task import Task
from mergekit_lite.search.trials import Trial, best_of
from mergekit_lite.sources import Model

METHOD = "adamerging"
START = 0.3
"""The weight that every expert begins with whose recipe gives it none, as in the paper."""
Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Learning:
    """How weights are learnt.

    Attributes:
        steps: of Adam; each looks at all windows.
        rate: of Adam.
        every: steps between two candidates that are scored.
    """

    steps: int = 30
    rate: float = 0.02
    every: int = 5


def adamerging(
    task: Task,
    learning: Learning,
    settings: Settings,
    *,
    threads: int | None = None,
    tell: Tell = lambda text: None,
    tell_trial: TellTrial = lambda trial: None,
) -> Found:
    """Learn a weight for every expert in every layer (Yang et al. 2024, arXiv 2310.02575).

    What is made less is the entropy of the predictions on the texts, of which no label is used.
    All that is outside the layers shares one weight. The texts' own scores decide at which step
    to stop, as predictions can become sure and wrong.

    Args:
        task: with texts.
        learning: how.
        settings: how texts are run.
        threads: workers of sweeps over the whole model.
        tell: called with sentences on how far it is.
        tell_trial: called with every step that was scored.

    Raises:
        RecipeError: the recipe does something else than add task vectors.
        DataError: there are no texts.
        ResourceError: model, base and task vectors are more than the memory that is allowed.
    """
    texts = [one for one in task.data if isinstance(one, Texts)]
    if not texts:
        what = "there are no texts, and questions have no predictions to make surer"
        raise DataError(what, task.recipe.at("search", "data"), "name a .txt file")
    recipe = task.recipe_of(task.start)
    plan, models = prepare(recipe)
    _require_sums(recipe, plan)
    scorer = scorer_of(task, plan, models, settings, threads=threads, parts=1, tell=tell)
    try:
        memory = _require_memory(scorer, len(recipe.experts), texts, settings)
        tell(f"about {memory / 1e6:,.0f} MB of memory, with base, task vectors and gradients")
        learnt = _Learnt(task, recipe, models, scorer)
        trials = learnt.run(learning, texts, tell_trial)
        best = best_of(trials)
        root = learnt.root(learnt.weights[best.number])
        final = learnt.plan(root)
        return Found(
            task=task,
            strategy=Strategy(METHOD, trials=len(trials)),
            trials=tuple(trials),
            best=best,
            root=root,
            plan=final,
            test=tested(scorer, final),
            memory=memory,
        )
    finally:
        scorer.close()


class _Learnt:
    """Weights by layer and expert, on the way from the first to the last step."""

    def __init__(
        self, task: Task, recipe: Recipe, models: Mapping[str, Model], scorer: Scorer
    ) -> None:
        self.task, self.models, self.scorer = task, models, scorer
        self.experts = list(recipe.experts)
        self.layers = len(scorer.model.skeleton.layers)
        self.first = [_first(recipe, name) for name in self.experts]
        self.weights: dict[int, Weights] = {}

    def run(self, learning: Learning, texts: Sequence[Texts], tell_trial: TellTrial) -> list[Trial]:
        """Return the steps that were scored: the first, the last, and some between."""
        single = np.eye(len(self.experts))
        model = self.scorer.model
        plans = [self.plan(self.everywhere([0.0] * len(self.experts), exact=True))]
        plans += [self.plan(self.everywhere(list(row), exact=True)) for row in single]
        entropy = Entropy(model, vectors_of(model, plans), texts)
        weights = np.tile(np.array(self.first), (self.layers + 1, 1))
        mean, square = np.zeros_like(weights), np.zeros_like(weights)
        trials: list[Trial] = []
        for step in range(learning.steps + 1):
            if step % learning.every == 0 or step == learning.steps:
                trials.append(self._scored(len(trials), weights))
                tell_trial(trials[-1])
            if step == learning.steps:
                break
            slope = entropy.slope(weights)
            mean = 0.9 * mean + 0.1 * slope
            square = 0.999 * square + 0.001 * slope**2
            unbiased = mean / (1 - 0.9 ** (step + 1))
            spread = np.sqrt(square / (1 - 0.999 ** (step + 1)))
            weights = weights - learning.rate * unbiased / (spread + 1e-8)
        return trials

    def root(self, weights: Weights) -> Node:
        """Return the recipe's tree with a rule for the weights of each layer."""
        places: list[str] = [*map(str, range(self.layers)), "outside"]
        rules = [
            {"match": {"layers": place}, "set": {"weight": self._named(row)}}
            for place, row in zip(places, weights, strict=True)
        ]
        return self._with(rules)

    def everywhere(self, weights: Sequence[float], *, exact: bool) -> Node:
        """Return the recipe's tree with the same weights everywhere; `exact` stores fp32."""
        root = self._with([{"match": "*", "set": {"weight": self._named(weights)}}])
        if not exact:
            return root
        output = dict(root.entries()["output"].entries()) if root.get("output") else {}
        stored = from_plain({"output": {"dtype": "float32"}}, METHOD).entries()["output"]
        whole = stored.with_value({**output, **stored.entries()})
        return root.with_value({**root.entries(), "output": whole})

    def plan(self, root: Node) -> Plan:
        """Return what a run of a tree would do."""
        return build(checked(self.task.tree, root, Problems()), self.models)

    def _named(self, weights: Sequence[float] | Weights) -> dict[str, float]:
        pairs = zip(self.experts, weights, strict=True)
        return {name: float(f"{weight:.6g}") for name, weight in pairs}

    def _with(self, rules: Sequence[Mapping[str, object]]) -> Node:
        root = self.task.root_of(self.task.start)
        added = from_plain({"rules": list(rules)}, METHOD).entries()["rules"]
        before = root.get("rules")
        listed = [*(before.items() if before is not None else []), *added.items()]
        return root.with_value({**root.entries(), "rules": added.with_value(listed)})

    def _scored(self, number: int, weights: Weights) -> Trial:
        self.weights[number] = weights
        self.scorer.model.touched()
        (scores,) = self.scorer.growing(self.plan(self.root(weights)))
        values = {
            f"experts.{name}.weight": [float(f"{w:.4g}") for w in weights[:, index]]
            for index, name in enumerate(self.experts)
        }
        return Trial(number, values, scores, loss(self.task.objectives, scores), "complete")


def _first(recipe: Recipe, name: str) -> float:
    weight = recipe.experts[name].weight
    return float(weight) if isinstance(weight, int | float) else START


def _require_sums(recipe: Recipe, plan: Plan) -> None:
    """Check that every computed row is a weighted sum of what it reads."""
    specs = registry()
    for job in plan.jobs:
        if job.kind == "copy":
            continue
        after = [step for step in job.steps if specs[step.op].kind != "transform"]
        (combine, *posts) = after
        if combine.op != "task_arithmetic" or combine.params.get("normalize") or posts:
            what = "weights are learnt where task vectors are added, and here is more"
            hint = "let the chain end with `task_arithmetic`, without `normalize`"
            raise RecipeError(f"{what}: `{job.name}`", recipe.at("steps"), hint)


def _require_memory(
    scorer: Scorer, experts: int, texts: Sequence[Texts], settings: Settings
) -> int:
    """Return the bytes that learning takes.

    Raises:
        ResourceError: they are more than allowed.
    """
    if settings.dtype != "float32":
        problem = Problem("weights are learnt in float32", "--dtype", "leave --dtype out")
        raise RecipeError([problem])
    skeleton = scorer.model.skeleton
    weights = 4 * sum(p.numel() for p in skeleton.model.parameters())
    config = skeleton.model.config.get_text_config()
    inner = getattr(config, "intermediate_size", 0) or 4 * skeleton.width
    layer = 16 * skeleton.width + 4 * inner
    kept = len(skeleton.layers) * layer + 4 * skeleton.vocabulary
    longest = max(len(window.encode()) for one in texts for window in one.windows)
    need = int(scorer.memory + (experts + 1) * weights + 4 * longest * kept)
    if settings.max_memory is not None and need > settings.max_memory:
        raise ResourceError(
            f"learning takes about {need:,} bytes of memory, {(experts + 1) * weights:,} of them"
            f" for base and task vectors, and {settings.max_memory:,} are allowed",
            "--max-memory",
            "give fewer experts, shorter --window-bytes or more memory, or search one weight an"
            " expert with `--method tpe`",
        )
    return need
