"""The chain in force for a tensor, resolved once for all tensors that share it."""

from __future__ import annotations

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops import registry
from mergekit_lite.ops._calibration import files_of
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.frame import Target
from mergekit_lite.plan.rules import Decision
from mergekit_lite.recipe.cascade import Chain, chain
from mergekit_lite.recipe.schema import Recipe

Key = tuple[tuple[int, ...], int | None, int | None, bool, str]


class Chains:
    """Resolves chains and remembers them: a model of 1000 tensors has few hundred different ones.

    Args:
        recipe: whose chains are resolved.
        layers: number of layers of the base.
        findings: where problems of resolved values are noted.
    """

    def __init__(self, recipe: Recipe, layers: int, findings: Findings) -> None:
        self.recipe = recipe
        self.layers = layers
        self.findings = findings
        self.resolved = 0
        self._known: dict[Key, Chain | None] = {}
        self._ops = registry()

    def get(self, decision: Decision, target: Target) -> Chain | None:
        """Return the chain for a tensor; None where it has a problem, which is noted."""
        own = self._own(decision, target.name)
        key = (decision.matched, target.slice, target.layer, target.role == "embedding", own)
        if key not in self._known:
            self._known[key] = self._resolve(decision, target)
            self.resolved += 1
        return self._known[key]

    def _own(self, decision: Decision, name: str) -> str:
        """Return the name if the chain may depend on it: a preset that looks at the tensor."""
        specs = (self._ops[step.op] for step in decision.steps)
        looks = any(spec.kind == "preset" and "place" in spec.specials for spec in specs)
        return name if looks else ""

    def _resolve(self, decision: Decision, target: Target) -> Chain | None:
        try:
            found = chain(
                self.recipe,
                decision.steps,
                name=target.name,
                layer=target.layer,
                layers=self.layers,
                sets=decision.sets,
                experts=target.members,
            )
        except RecipeError as error:
            for problem in error.problems:
                self.findings.problem(problem.what, decision.where, problem.hint)
            return None
        except KeyError as error:
            self.findings.problem(
                f"a map by expert has no value for `{error.args[0]}`",
                decision.where,
                "add it, or a `default`",
            )
            return None
        return found if self._sound(found, decision) else None

    def _sound(self, found: Chain, decision: Decision) -> bool:
        """Check values that only resolving showed: of gradients, of presets, of rules' `set`."""
        steps = [step for own in found.transforms.values() for step in own]
        weights = list(found.weights.values())
        steps += [(found.combine, {**found.params, "weights": weights})]
        for op, params in found.posts:
            sees_all = "deltas" in self._ops[op].specials
            steps.append((op, {**params, "weights": weights} if sees_all else params))
        problems = [problem for op, params in steps for problem in self._ops[op].problems(params)]
        hint = ""
        for op, params in steps:
            # Looked for now, because a run would miss it only when it gets to this row.
            if not self._ops[op].calibration:
                continue
            for file in dict.fromkeys(files_of(params, list(self.recipe.experts)).values()):
                if (self.recipe.folder / file).exists():
                    continue
                problems.append(f"{op}.file: there is no `{file}`")
                hint = "relative paths start from the recipe's folder"
        for problem in problems:
            self.findings.problem(problem, decision.where, hint)
        return not problems
