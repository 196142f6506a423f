"""From a tensor of the output and the recipe's decision about it to one row of the plan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mergekit_lite.checkpoint import FLOAT_DTYPES
from mergekit_lite.ops import OpSpec, registry
from mergekit_lite.plan.chains import Chains
from mergekit_lite.plan.classes import is_class_head, same_classes
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.frame import Target
from mergekit_lite.plan.inputs import View, check_tensor, shape_text
from mergekit_lite.plan.layout import output_dtype
from mergekit_lite.plan.names import plural
from mergekit_lite.plan.row_steps import IDENTITY, RowSteps
from mergekit_lite.plan.rules import Decision, Rules
from mergekit_lite.plan.runs import is_moved
from mergekit_lite.plan.shortcuts import least_inputs, same_as, wanted
from mergekit_lite.plan.types import Job, Read, Step
from mergekit_lite.recipe.cascade import Chain
from mergekit_lite.recipe.schema import Recipe

_EXPERTS = re.compile(r"experts?\b|_moe\b", re.IGNORECASE)
"""What names of a routed model hold, whose modules called `gate` are routers."""


class Rows:
    """Makes the rows of one plan.

    Args:
        recipe: what is wanted.
        found: the base and the experts.
        layers: number of layers of the output.
        findings: where problems are noted.
    """

    def __init__(
        self, recipe: Recipe, found: Mapping[str, View], layers: int, findings: Findings
    ) -> None:
        self.recipe = recipe
        self.found = found
        self.findings = findings
        self.rules = Rules(recipe)
        self.chains = Chains(recipe, layers, findings)
        self.heads: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.steps = RowSteps(recipe, findings)
        self.routed = any(_EXPERTS.search(name) for name in found["base"].tensors)
        self._ops = registry()

    def row(self, target: Target) -> Job | None:
        """Return the row of one tensor; None if it is dropped or has a problem, which is noted."""
        decision = self.rules.decide(target.name, target.layer, target.role, target.slice)
        if decision.action == "drop":
            return None
        if decision.action == "take":
            return self._take(target, decision.take, decision)
        if target.info.dtype not in FLOAT_DTYPES:
            return self._not_float(target, decision)
        chain = self.chains.get(decision, target)
        if chain is None:
            return None
        spec = self._ops[chain.combine]
        experts = [name for name in self.recipe.experts if target.has(name)]
        names = spec.reads({**chain.params, "weights": chain.weights}, experts)
        if spec.structural:  # `drop`, as the only op of a chain
            return None
        if self._keeps_router(target, spec, names, decision):
            donor = self._whole(self.found["base" if target.has("base") else target.donor], target)
            self.findings.warn_of(
                f"`{target.name}`",
                "routers are not merged but the base's; `routers: merge` merges them",
            )
            return self._copy(target, donor, decision, "a router")
        return self._merge(target, spec, chain, names, decision)

    def _keeps_router(
        self, target: Target, spec: OpSpec, names: Sequence[str], decision: Decision
    ) -> bool:
        """Return whether a routed model's router stays as it is: no rule speaks of it.

        What a router learnt belongs to its own experts; a mean of two fits neither. The router of
        a model that is taken alone comes along, and so does what an adapter learnt of it.
        """
        keeps = self.recipe.routers or ("merge" if self.recipe.compat == "mergekit" else "base")
        merges = keeps == "merge" or self.names_router(decision)
        if target.role != "router" or not self.routed or merges:
            return False
        alone = spec.space == "weight" and len(names) == 1
        views = [view for view in map(self.found.get, names) if view is not None]
        adapted = any(v.model.adapter is not None and v.covers(target.name) for v in views)
        return not alone and not adapted

    def names_router(self, decision: Decision) -> bool:
        """Return whether a rule that matches speaks of routers, or of tensors by name."""
        matches = [self.recipe.rules[index].match for index in decision.matched]
        return any(match.name is not None or match.role == "router" for match in matches)

    def _take(self, target: Target, source: str, decision: Decision) -> Job | None:
        view, info = self.found.get(source), target.info
        if not self._have_layers(target, [source], decision):
            return None
        if view is not None and is_class_head(target.name) and (shape := view.shape(target.name)):
            self.heads[target.name] = source, shape
            if shape[1:] == info.shape[1:]:
                info = replace(info, shape=shape)
                target = replace(target, info=info)
        if view is None or not check_tensor(view, info, self.recipe, self.findings):
            return None
        view.used += 1
        stored = view.dtype(info.name)
        if info.dtype not in FLOAT_DTYPES and stored not in (None, info.dtype):
            self.findings.problem_with(
                f"`{info.name}` {stored} (base {info.dtype})",
                f"expert `{source}` stores other dtypes than the base",
                decision.where,
                "`take: base` for these, or no rule at all",
            )
            return None
        return self._copy(target, self._whole(view, target), decision, "")

    def taken(self, target: Target, source: str, where: str, why: str) -> Job | None:
        """Return the row that takes a tensor from one input; None with a problem noted."""
        return self._take(target, source, Decision("take", source, (), (), where, why, (), None))

    def _have_layers(self, target: Target, names: Sequence[str], decision: Decision) -> bool:
        """Refuse inputs of which a slice has no layer."""
        absent = [name for name in names if not target.has(name)]
        for name in absent:
            self.findings.problem(
                f"slice {(target.slice or 0) + 1} has no layers of `{name}`, which is wanted here",
                decision.where,
                f"add `{name}: ...` to the `layers` of the slice",
            )
        return not absent

    def _not_float(self, target: Target, decision: Decision) -> Job:
        info = target.info
        for view in (view for name, view in self.found.items() if target.has(name)):
            shape, dtype = view.shape(info.name), view.dtype(info.name)
            if (
                not view.settled
                and shape is not None
                and (shape, dtype) != (info.shape, info.dtype)
            ):
                self.findings.warn_of(
                    f"`{info.name}` {dtype} {shape_text(shape or ())}"
                    f" (base {info.dtype} {shape_text(info.shape)})",
                    f"expert `{view.name}` differs in tensors that are not floats and are copied"
                    " from the base",
                )
        donor = self._whole(self.found[target.donor], target)
        return self._copy(target, donor, decision, "not a float")

    def _merge(
        self,
        target: Target,
        spec: OpSpec,
        chain: Chain,
        names: Sequence[str],
        decision: Decision,
    ) -> Job | None:
        names = wanted(spec, names, chain.weights)
        base = ["base"] if spec.space_for(chain.params) == "delta" else []
        if not self._have_layers(target, [*base, *names], decision):
            return None
        fit = [
            view is not None
            and same_classes(view, self.found["base"], target.info, self.recipe, self.findings)
            and check_tensor(view, target.info, self.recipe, self.findings)
            for view in map(self.found.get, names)
        ]
        if not all(fit) or not self._enough(spec, names, chain.params, decision):
            return None
        counts = "weights" in spec.specials and not chain.weighs_itself
        for name in names:
            self.found[name].used += 1
            self.found[name].weighted += counts
        if spec.space_for(chain.params) == "weight":
            if not self._on_whole_weights(spec, chain, names, decision):
                return None
            return self._merge_weights(target, spec, chain, names, decision)
        return self._merge_deltas(target, spec, chain, names, decision)

    def _merge_weights(
        self,
        target: Target,
        spec: OpSpec,
        chain: Chain,
        names: Sequence[str],
        decision: Decision,
    ) -> Job:
        silent = {n for n in names if n != "base" and target.name not in self.found[n].base}
        if silent and silent == set(names) - {"base"}:
            base = self._whole(self.found["base"], target)
            return self._copy(target, base, decision, "beyond the scope of every expert")
        reads = [self._whole(self.found[name], target) for name in names]
        weights = [chain.weights.get(name, 1.0) for name in names]
        same = same_as(spec, chain.params, reads, weights)
        if same is not None:
            return self._copy(target, same, decision, f"`{spec.name}` gives back {same.source}")
        step = self.steps.combine(spec, chain, weights, target, names, decision.where)
        return self._computed(target, reads, [step], decision)

    def _merge_deltas(
        self,
        target: Target,
        spec: OpSpec,
        chain: Chain,
        names: Sequence[str],
        decision: Decision,
    ) -> Job:
        base, where = self._whole(self.found["base"], target), decision.where
        reads = [self.found[name].read(target.name) for name in names]
        if any(read.zero for read in reads):
            self.steps.count_untouched(target, spec, chain, reads, where)
        if all(read.zero for read in reads):
            return self._copy(target, base, decision, "every delta is zero")
        weights = [chain.weights.get(name, 1.0) for name in names]
        # A zero delta stays zero under every transform, and still counts in the combine.
        steps = [
            replace(step, expert=read.source)
            for read in reads
            if not read.zero
            for op, params in chain.transforms.get(read.source, ())
            if (step := self.steps.step(op, params, target, [read.source], where)) is not None
        ]
        combine = self.steps.combine(spec, chain, weights, target, names, where)
        why = "" if combine.op == spec.name else f"`{spec.name}` leaves it to `{combine.op}`"
        steps.append(combine)
        posts = (self.steps.step(op, p, target, names, where) for op, p in chain.posts)
        steps += [post for post in posts if post is not None]
        return self._computed(target, reads, steps, decision, base=base, why=why)

    def _reads_named(
        self,
        spec: OpSpec,
        names: Sequence[str],
        params: Mapping[str, Any],
        decision: Decision,
    ) -> bool:
        """Refuse the name of an expert that is not among the inputs."""
        for name, parameter in spec.parameters.items():
            if parameter.expert_name and params.get(name) not in (*names, "base"):
                what = f"`{spec.name}.{name}` is `{params.get(name)}`, which is not read here"
                self.findings.problem(what, decision.where, f"its inputs are {', '.join(names)}")
                return False
        return True

    def _enough(
        self,
        spec: OpSpec,
        names: Sequence[str],
        params: Mapping[str, Any],
        decision: Decision,
    ) -> bool:
        if spec.reads_all and not self._reads_named(spec, names, params, decision):
            return False
        least, most = spec.experts
        if spec.choosers:
            least, most = 1, 1
        if least_inputs(spec) <= len(names) and (most is None or len(names) <= most):
            return True
        count = f"{least}" if most == least else f"{least} to {most}" if most else f"{least}+"
        names_one = next(iter(spec.choosers), "")
        self.findings.problem(
            f"`{spec.name}` takes {plural(least, 'input') if most == 1 else count + ' inputs'},"
            f" here are {len(names)}: {', '.join(names)}",
            decision.where,
            f"name it: `{names_one}: NAME`"
            if names_one
            else "pick its inputs: `weights: {NAME: 1, ...}`",
        )
        return False

    def _on_whole_weights(
        self, spec: OpSpec, chain: Chain, names: Sequence[str], decision: Decision
    ) -> bool:
        """Refuse an expert's own steps where nothing can apply them; `take` needs none."""
        if spec.choosers:
            return True
        own = [name for name in names if chain.transforms.get(name)]
        for name in own:
            self.findings.problem(
                f"expert `{name}` has steps of its own, which work on differences to the base;"
                f" `{spec.name}` works on whole weights",
                decision.where,
                f"use `task_arithmetic` in place of `{spec.name}` here, or remove the steps",
            )
        return not own

    def _whole(self, view: View, target: Target) -> Read:
        """Return how the whole weight is read: the base's where the expert leaves it alone."""
        read = view.read(target.name)
        return self.found["base"].read(target.name) if read.zero else read

    def _copy(self, target: Target, read: Read, decision: Decision, why: str) -> Job:
        """Return a row that moves bytes, or one that only casts or gathers rows."""
        info, layer = target.info, target.layer
        stored = self.found[read.source].dtype(info.name)
        reason = f"{decision}; {why}" if why else str(decision)
        dtype = output_dtype(info.dtype, self.recipe.output.dtype)
        made = read.made and info.dtype in FLOAT_DTYPES
        # A run of one stored tensor moves as it is; several may differ in dtype.
        put_together = len(read.pieces) > 1 or (bool(read.pieces) and not is_moved(read))
        computed = read.lora or made or read.gather or put_together
        if not computed and stored == dtype:
            return Job(
                info.name, dtype, info.shape, 0, 0, "copy", (read,), layer=layer, rule=reason
            )
        return self._computed(target, [read], [IDENTITY], decision, why=why)

    def _computed(
        self,
        target: Target,
        reads: Sequence[Read],
        steps: Sequence[Step],
        decision: Decision,
        base: Read | None = None,
        why: str = "",
    ) -> Job:
        info = target.info
        if info.dtype == "F64":
            self.findings.warn_of(f"`{info.name}`", "the base has F64 tensors, computed in fp32")
        # An adapter's weight is the base's plus its delta.
        if base is None and any(read.lora for read in reads):
            base = self.found["base"].read(info.name)
        return Job(
            name=info.name,
            dtype=output_dtype(info.dtype, self.recipe.output.dtype),
            shape=info.shape,
            shard=0,
            start=0,
            kind="merge",
            reads=tuple(reads),
            base=base,
            steps=tuple(steps),
            layer=target.layer,
            rule=f"{decision}; {why}" if why else str(decision),
        )
