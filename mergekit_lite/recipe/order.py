"""Whether the ops of a chain fit together: transforms, one combine, posts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops import OpSpec
from mergekit_lite.recipe.cascade import expand
from mergekit_lite.recipe.marks import Mark, Problems
from mergekit_lite.recipe.steps import BASE, StepNode

_MANY = 1 << 20  # layers of the imagined model on which presets are tried: enough for any of them


@dataclass(frozen=True)
class _Part:
    """One op of the written-out chain."""

    spec: OpSpec
    params: Mapping[str, Any]
    written: StepNode  # the step it comes from: itself, or a preset

    @property
    def label(self) -> str:
        if self.spec.name == self.written.op:
            return f"`{self.spec.name}`"
        return f"`{self.spec.name}` (from `{self.written.op}`)"


@dataclass(frozen=True)
class Checker:
    """Checks written chains of one recipe.

    Attributes:
        specs: the op registry.
        experts: names of the recipe's experts.
        compat: the recipe's compat mode.
        problems: where to note what is wrong.
    """

    specs: Mapping[str, OpSpec]
    experts: tuple[str, ...]
    compat: str
    problems: Problems

    def chain(self, steps: Sequence[StepNode], mark: Mark) -> OpSpec | None:
        """Check the recipe's chain or that of a rule; return its combine if it has one."""
        parts = self.parts(steps)
        if parts is None:
            return None
        combines = [part for part in parts if part.spec.kind == "combine"]
        if not combines:
            if steps:
                names = [n for n, s in self.specs.items() if s.kind == "combine"]
                hint = f"end the chain in one of {', '.join(f'`{n}`' for n in sorted(names))}"
                self.problems.add("the chain has no combine: nothing joins the experts", mark, hint)
            return None
        first = combines[0]
        for part in combines[1:]:
            what = f"{part.label} is a second combine, after {first.label}"
            self.problems.add(what, part.written.mark, "a chain has exactly one: remove one")
        self._order(parts, first)
        self._space(parts, first.spec)
        self._count(first)
        return first.spec

    def own(self, steps: Sequence[StepNode], shared: OpSpec | None) -> None:
        """Check an expert's own steps: transforms, before a combine that works on deltas."""
        for part in self.parts(steps) or ():
            if part.spec.kind != "transform":
                what = f"{part.label} is a {part.spec.kind}; an expert's own steps are transforms"
                self.problems.add(what, part.written.mark, "move it to the recipe's `steps`")
            elif shared is not None and shared.space == "weight":
                self._whole_weights(part, shared)

    def parts(self, steps: Sequence[StepNode]) -> list[_Part] | None:
        """Return the chain with presets written out; None where an op is unknown."""
        parts: list[_Part] = []
        for step in steps:
            if step.spec is None:
                return None
            expanded = self._expanded(step)
            if expanded is None:
                return None
            parts += [_Part(self._spaced(op, params), params, step) for op, params in expanded]
        return parts

    def _spaced(self, op: str, params: Mapping[str, Any]) -> OpSpec:
        """Return an op's spec with the space that its parameters choose."""
        spec = self.specs[op]
        return replace(spec, space=spec.space_for({**spec.defaults(self.compat), **params}))

    def _expanded(self, step: StepNode) -> list[tuple[str, dict[str, Any]]] | None:
        if step.spec is None or step.spec.kind != "preset":
            return [(step.op, dict(step.params))]
        found = None
        for expert in self.experts or (None,):
            try:
                found = expand(
                    [(step.op, step.params)],
                    layer=0,
                    layers=_MANY,
                    expert=expert,
                    compat=self.compat,
                )
            except Exception as error:
                if not step.sound:
                    return None  # its parameters were noted: judge the chain once they are right
                if not isinstance(error, RecipeError):
                    raise
                self.problems.add(error.problems[0].what, step.mark, error.problems[0].hint)
                return None
        return found

    def _order(self, parts: list[_Part], combine: _Part) -> None:
        place = parts.index(combine)
        for index, part in enumerate(parts):
            if part.spec.kind == "transform" and index > place:
                what = f"the transform {part.label} stands after the combine {combine.label}"
                self.problems.add(what, part.written.mark, "move it before the combine")
            if part.spec.kind == "post" and index < place:
                what = f"{part.label} works on the merged result but stands before the combine"
                self.problems.add(what, part.written.mark, f"move it after {combine.label}")

    def _space(self, parts: list[_Part], combine: OpSpec) -> None:
        for part in parts:
            if combine.space == "weight" and part.spec.kind in ("transform", "post"):
                self._whole_weights(part, combine)

    def _whole_weights(self, part: _Part, combine: OpSpec) -> None:
        what = (
            f"`{combine.name}` works on whole weights, so {part.label}, which works on "
            "differences to the base, cannot stand in one chain with it"
        )
        deltas = [n for n, s in self.specs.items() if s.kind == "combine" and s.space == "delta"]
        better = "task_arithmetic" if "task_arithmetic" in deltas else next(iter(deltas), "")
        hint = f"use `{better}` in place of `{combine.name}`" if better else ""
        self.problems.add(what, part.written.mark, hint)

    def _count(self, combine: _Part) -> None:
        spec = combine.spec
        choosers = spec.choosers
        inputs = spec.reads(combine.params, self.experts)
        named = [name for name in choosers if name in combine.params]
        weights = combine.params.get("weights") or {}
        if named or not set(weights) <= {*self.experts, BASE}:
            return  # the op names its one input itself, or a name is wrong, which was noted
        least, most = spec.experts
        if choosers and len(inputs) > 1 and not spec.parameters[choosers[0]].required:
            what = f"{combine.label} cannot tell which of {len(inputs)} experts is meant"
            hint = f"name one: `{spec.name}: {{{choosers[0]}: NAME}}`"
            self.problems.add(what, combine.written.mark, hint)
        elif len(inputs) < least or (most is not None and len(inputs) > most):
            wanted = f"at least {least}" if len(inputs) < least else f"at most {most}"
            wanted = str(least) if least == most else wanted
            plural = "" if wanted.endswith(" 1") or wanted == "1" else "s"
            what = f"{combine.label} takes {wanted} expert{plural}, here are {len(inputs)}"
            many = len(inputs) > least and spec.kind == "combine"
            hint = "pick its inputs: `weights: {NAME: 1, ...}`" if many else ""
            self.problems.add(what, combine.written.mark, hint or "add them under `experts`")
