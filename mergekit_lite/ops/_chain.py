"""One output tensor from its inputs: the torch chain that defines every merge.

transforms (each on one expert's delta) -> one combine -> posts -> back to weights, all in fp32.
`merge` works on whole tensors and is the specification; the smaller functions below work on tiles
too, on any device, and are what the engine builds its torch path from. The fused CPU kernels are
held to `merge` bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from mergekit_lite.errors import Problem, RecipeError
from mergekit_lite.ops._place import Place, random_key
from mergekit_lite.ops._spec import OpSpec, Space, get
from mergekit_lite.ops._statistics import Answer, Order, Totals, answer_of

if TYPE_CHECKING:
    from torch import Tensor


class Step(Protocol):
    """One op with all parameters resolved; the plan's `Step` is one."""

    @property
    def op(self) -> str: ...
    @property
    def params(self) -> Mapping[str, Any]: ...
    @property
    def expert(self) -> str: ...


@dataclass(frozen=True)
class Stage:
    """A step of a chain that was built by hand; `expert` is empty for "each of them"."""

    op: str
    params: Mapping[str, Any] = field(default_factory=dict)
    expert: str = ""


def space_of(combine: Step) -> Space:
    """Return what a combine works on, with its parameters."""
    spec = get(combine.op)
    return spec.space_for({**spec.defaults(), **combine.params})


def split(steps: Sequence[Step]) -> tuple[list[int], int, list[int]]:
    """Return the positions of a chain's transforms, of its combine and of its posts.

    Raises:
        RecipeError: not exactly one combine, steps out of order, transforms or posts around a
            combine of whole weights, or a preset that was not expanded.
    """
    kinds = [get(step.op).kind for step in steps]
    problems = [
        Problem(f"`{step.op}` is a preset and was not expanded")
        for step, kind in zip(steps, kinds, strict=True)
        if kind == "preset"
    ]
    if kinds.count("combine") != 1:
        hint = "end the transforms with one combine, such as `task_arithmetic`"
        problems.append(
            Problem(f"a chain has one combine, this one {kinds.count('combine')}", "", hint)
        )
        raise RecipeError(problems)
    middle = kinds.index("combine")
    around = kinds[:middle] + kinds[middle + 1 :]
    if kinds[:middle].count("transform") != middle or "transform" in kinds[middle:]:
        problems.append(Problem("transforms come before the combine and posts after it"))
    if around and space_of(steps[middle]) == "weight":
        what = f"`{steps[middle].op}` works on whole weights: no transform or post fits around it"
        problems.append(Problem(what, "", "use a delta-space combine, such as `task_arithmetic`"))
    if problems:
        raise RecipeError(problems)
    return list(range(middle)), middle, list(range(middle + 1, len(steps)))


def placed(step: Step, place: Place, seed: int) -> Place:
    """Return `place` with the random key of this step (its op, its expert, the tensor's name)."""
    return replace(place, key=random_key(seed, step.op, step.expert, place.name))


def statistic(
    spec: OpSpec, params: Mapping[str, Any], values: Sequence[Tensor], place: Place
) -> Answer:
    """Return what an op is to know of whole tensors: its `cut` or `sums`, or all of `found`.

    A statistic of the whole model is here that of a model of this one tensor.

    Args:
        values: the op's input (one delta for a transform, all inputs of a combine and then what
            its statistic files hold of them, the merged delta of a post and then, where the op
            asks for `deltas`, those).
        place: of the tensor.
    """
    found: tuple[Answer, ...] = ()
    for needs in spec.statistics:
        found += (answer_of(needs, params, values, place, found),)
    return answer_from(spec, found)


def answer_from(spec: OpSpec, found: tuple[Answer, ...]) -> Answer:
    """Return what an op is handed of the answers of its statistics."""
    return found if isinstance(spec.needs, tuple) else found[0] if found else None


@dataclass(frozen=True)
class Beside:
    """What a step may ask for beside its input.

    Attributes:
        calibration: of its calibration files, the part that belongs to the tile.
        base: the base tensor, or its tile; None where there is none.
        deltas: all inputs as they entered the row, before any transform.
        names: of the inputs, in their order.
    """

    calibration: Any = None
    base: Tensor | None = None
    deltas: Sequence[Tensor] = ()
    names: Sequence[str] = ()


NOTHING = Beside()


def _specials(spec: OpSpec, place: Place, answer: Answer, beside: Beside) -> dict[str, Any]:
    is_cut = isinstance(spec.needs, Order)
    given = {
        "place": place,
        "cut": answer if is_cut and answer is not None else (),
        "sums": answer if isinstance(spec.needs, Totals) else None,
        "found": answer,
        "names": beside.names,
        "calibration": beside.calibration,
        "base": beside.base,
        "deltas": beside.deltas,
    }
    return {name: value for name, value in given.items() if name in spec.specials}


def apply_transform(
    step: Step, delta: Tensor, place: Place, answer: Answer = None, beside: Beside = NOTHING
) -> Tensor:
    """Return a transform's result for one expert's delta, or a tile of it.

    Args:
        place: where the tile lies; `place.key` is that of `placed`.
        answer: what `statistic` gave for the whole tensor, if the op needs one.
    """
    spec = get(step.op)
    specials = _specials(spec, place, answer, beside)
    result: Tensor = spec.function(delta.float(), **specials, **spec.arguments(step.params))
    return result


def apply_combine(
    step: Step,
    inputs: Sequence[Tensor],
    place: Place,
    answer: Answer = None,
    beside: Beside = NOTHING,
) -> Tensor:
    """Return a combine's result for all inputs, or a tile of each.

    Args:
        inputs: what `combine_inputs` gives: deltas or weights by the op's space.
    """
    spec = get(step.op)
    if spec.structural:
        raise RecipeError(f"`{step.op}` leaves nothing to compute", place.name)
    specials = _specials(spec, place, answer, beside)
    if "weights" in spec.specials:
        weights = [float(w) for w in step.params.get("weights") or [1.0] * len(inputs)]
        if len(weights) != len(inputs):
            counts = f"{len(weights)} weights for {len(inputs)} inputs"
            raise RecipeError(f"`{step.op}` is given {counts}", place.name)
        specials["weights"] = weights
    fp32 = [tensor.float() for tensor in inputs]
    result: Tensor = spec.function(fp32, **specials, **spec.arguments(step.params))
    return result


def apply_post(
    step: Step, merged: Tensor, place: Place, answer: Answer = None, beside: Beside = NOTHING
) -> Tensor:
    """Return a post's result for the merged delta, or a tile of it."""
    return apply_transform(step, merged, place, answer, beside)


def enter(base: Tensor | None, expert: Tensor, space: Space) -> Tensor:
    """Return what the chain works on: the expert's delta, or its weight, in fp32."""
    if space == "weight":
        return expert.float()
    if base is None:
        raise RecipeError("a delta-space combine needs a base", "", "give `base:` in the recipe")
    return expert.float() - base.float()


def finish(base: Tensor | None, y: Tensor, space: Space) -> Tensor:
    """Return the merged weight in fp32; where the delta is zero it is the base bit for bit."""
    if space == "weight" or base is None:
        return y
    weight = base.float()
    return (weight + y).where(y != 0, weight)


def combine_names(step: Step, experts: Sequence[str], has_base: bool) -> tuple[str, ...]:
    """Return the names of the tensors a combine takes in, in order; `base` may be the first.

    Raises:
        RecipeError: a name that is not among the inputs, or too many or too few of them.
    """
    spec = get(step.op)
    names = spec.reads(step.params, list(experts))
    missing = [name for name in names if name not in experts and not (has_base and name == "base")]
    if missing:
        listed = ", ".join(missing)
        raise RecipeError(f"`{step.op}` reads {listed}, which this tensor has no input for")
    low, high = spec.experts
    if len(names) < low or (high is not None and len(names) > high):
        bound = "or more" if high is None else f"to {high}"
        raise RecipeError(f"`{step.op}` takes {low} {bound} inputs, not {len(names)}")
    return names


@dataclass(frozen=True)
class Run:
    """What stays the same for all steps of one tensor's chain."""

    steps: Sequence[Step]
    place: Place
    shape: Sequence[int]
    seed: int
    known: Mapping[int, Answer]
    calibration: Any
    base: Tensor | None = None

    def apply(
        self, at: int, expert: str, inputs: Sequence[Tensor], beside: Beside, **changed: Any
    ) -> Tensor:
        """Apply the step at position `at`, after taking its statistic."""
        spec = get(self.steps[at].op)
        params = {**spec.defaults(), **self.steps[at].params, **changed}
        stage = Stage(spec.name, spec.params_for(params, self.shape), expert)
        place = placed(stage, self.place, self.seed)
        if at in self.known:
            answer = self.known[at]
        else:
            measured = self.calibration if spec.calibration and spec.kind == "combine" else None
            answer = statistic(spec, stage.params, [*inputs, *(measured or ())], place)
        if spec.kind == "combine":
            return apply_combine(stage, inputs, place, answer, beside)
        return apply_transform(stage, inputs[0], place, answer, beside)

    def all(self, values: Mapping[str, Tensor], base: Tensor | None) -> Tensor:
        """Apply all steps to each expert's delta (or weight) and return what comes out."""
        before, middle, after = split(self.steps)
        names = combine_names(self.steps[middle], list(values), base is not None)
        raw = [value for name in names if (value := values.get(name, base)) is not None]
        beside = Beside(self.calibration, self.base, raw, names)
        values = dict(values)
        for at in before:
            only = self.steps[at].expert
            if only and only not in values:
                raise RecipeError(f"`{self.steps[at].op}` is for `{only}`, which is no input")
            for expert in [only] if only else list(values):
                values[expert] = self.apply(at, expert, [values[expert]], beside)
        tensors = [values.get(name, base) for name in names]
        weights = self.steps[middle].params.get("weights")
        changed = {"weights": [weights[n] for n in names]} if isinstance(weights, Mapping) else {}
        merged = self.apply(middle, "", [t for t in tensors if t is not None], beside, **changed)
        for at in after:
            asks = "deltas" in get(self.steps[at].op).specials
            merged = self.apply(at, "", [merged, *(raw if asks else ())], beside)
        return merged


def merge(
    base: Tensor | None,
    inputs: Mapping[str, Tensor],
    steps: Sequence[Step],
    *,
    name: str = "",
    seed: int = 0,
    layer: int | None = None,
    layers: int = 1,
    role: str = "",
    known: Mapping[int, Answer] | None = None,
    calibration: Any = None,
) -> Tensor:
    """Return one output tensor, in fp32: the specification that all fast paths are held to.

    Args:
        base: the base tensor; may be None where the combine works on whole weights.
        inputs: each expert's tensor by name, in recipe order; any float dtypes.
        steps: transforms, one combine, posts, with resolved parameters; a transform without
            `expert` is applied to each.
        name: name of the tensor, which random masks depend on.
        role: part that the tensor plays, such as `embedding`.
        known: statistics by position in `steps` that are not to be computed here, such as those
            of the whole model.
        calibration: handed to ops that ask for it.

    Raises:
        RecipeError: the chain is not one, or does not fit the inputs.
    """
    space = space_of(steps[split(steps)[1]])
    if not inputs and base is None:
        raise RecipeError("there is nothing to merge", name)
    values = {expert: enter(base, tensor, space) for expert, tensor in inputs.items()}
    shape = (base if base is not None else next(iter(values.values()))).shape
    place = Place(name=name, size=math.prod(shape), layer=layer, layers=layers, role=role)
    whole = base.float() if base is not None else None
    run = Run(steps, place, shape, seed, known or {}, calibration, whole)
    return finish(base, run.all(values, whole), space)
