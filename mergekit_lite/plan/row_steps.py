"""The steps of a row: each op's parameters for a tensor, or what stands in for the op there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_lite.ops import OpSpec, registry
from mergekit_lite.ops._spec import StandIn
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.frame import Target
from mergekit_lite.plan.questions import may_ask
from mergekit_lite.plan.statistic_files import StatisticFiles
from mergekit_lite.plan.types import Read, Step
from mergekit_lite.plan.untouched import Untouched
from mergekit_lite.recipe.cascade import Chain
from mergekit_lite.recipe.schema import Recipe

IDENTITY = Step("passthrough", {"source": None, "scale": 1.0, "weights": [1.0]})
"""What a row does that only changes the dtype, or only forms an adapter's weight."""


class RowSteps:
    """Makes the steps of the rows of one plan.

    Args:
        recipe: whose statistic files steps may read.
        findings: where problems are noted.
    """

    def __init__(self, recipe: Recipe, findings: Findings) -> None:
        self.statistics = StatisticFiles(recipe, findings)
        self.untouched = Untouched()
        self._ops = registry()

    def step(
        self, op: str, params: Mapping[str, Any], target: Target, names: Sequence[str], where: str
    ) -> Step | None:
        """Return a step for a tensor, or what stands in for it there; None for nothing."""
        spec, shape = self._ops[op], target.info.shape
        other = spec.stand_in(params, shape, target.role, len(names))
        if other is None and spec.calibration:
            has = self.statistics.has(spec, params, target.info, names, where)
            if not has and spec.without is not None:
                other = spec.without(params, len(names))
        return self._resolved(op, params, shape, other)

    def combine(
        self,
        spec: OpSpec,
        chain: Chain,
        weights: Sequence[float],
        target: Target,
        names: Sequence[str],
        where: str,
    ) -> Step:
        """Return a combine's step, with its weights."""
        step = self.step(spec.name, chain.params, target, names, where) or IDENTITY
        return Step(step.op, {**step.params, "weights": list(weights)})

    def count_untouched(
        self, target: Target, spec: OpSpec, chain: Chain, reads: Sequence[Read], where: str
    ) -> None:
        """Let whole-model statistics know of the entries of a tensor that an input leaves alone."""
        names = [read.source for read in reads]
        own = [(op, p, name) for name in names for op, p in chain.transforms.get(name, ())]
        every = [*own, *((op, p, "") for op, p in ((spec.name, chain.params), *chain.posts))]
        if may_ask(op for op, _, _ in every):
            steps = (self._unread(op, p, e, target, names, where) for op, p, e in every)
            found = [step for step in steps if step is not None]
            self.untouched.count(target.info.shape, target.layer, reads, found)

    def _unread(
        self,
        op: str,
        params: Mapping[str, Any],
        expert: str,
        target: Target,
        names: Sequence[str],
        where: str,
    ) -> Step | None:
        """Return a step that no row will have; nothing that it lacks is noted."""
        spec, shape = self._ops[op], target.info.shape
        inputs = [expert] if expert else names
        other = spec.stand_in(params, shape, target.role, len(inputs))
        if other is None and spec.calibration:
            found = self.statistics.holds(spec, params, target.name, inputs, where)
            if not found and spec.without is not None:
                other = spec.without(params, len(inputs))
        return self._resolved(op, params, shape, other, expert)

    def _resolved(
        self,
        op: str,
        params: Mapping[str, Any],
        shape: Sequence[int],
        other: StandIn | None,
        expert: str = "",
    ) -> Step | None:
        if other is None:
            return Step(op, self._ops[op].params_for(params, shape), expert)
        op, params = other
        if not op:
            return None
        spec = self._ops[op]
        return Step(op, spec.params_for({**spec.defaults(), **params}, shape), expert)
