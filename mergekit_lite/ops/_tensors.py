"""One op or preset on tensors in hand, without a recipe or files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import Problem, RecipeError
from mergekit_lite.ops._chain import Run, Stage, finish, split
from mergekit_lite.ops._place import Place, random_key
from mergekit_lite.ops._spec import get

if TYPE_CHECKING:
    from torch import Tensor


def expand(op: str, params: Mapping[str, Any], place: Place, seed: int = 0) -> list[Stage]:
    """Return the chain that a single op or a preset stands for.

    A lone transform or post is completed by a plain sum, which changes nothing for one delta.

    Raises:
        RecipeError: an unknown op, or parameters it does not take.
    """
    try:
        spec = get(op)
    except KeyError as error:
        raise RecipeError(str(error.args[0])) from None
    problems = spec.problems(params)
    if problems:
        raise RecipeError([Problem(problem, op) for problem in problems])
    if spec.kind == "preset":
        drawn = replace(place, key=random_key(seed, spec.name, "", ""))
        specials = {"place": drawn} if "place" in spec.specials else {}
        arguments = spec.arguments({**spec.defaults(), **params})
        return [Stage(name, values) for name, values in spec.function(**specials, **arguments)]
    lone, total = Stage(spec.name, params), Stage("task_arithmetic")
    return {"transform": [lone, total], "combine": [lone], "post": [total, lone]}[spec.kind]


def _expand_for_each(
    op: str, params: Mapping[str, Any], place: Place, names: Sequence[str], seed: int
) -> list[Stage]:
    """Return the chain of an op; a parameter that is a map by expert gives each its own steps."""
    maps = {key: value for key, value in params.items() if isinstance(value, Mapping)}
    if not maps or "weights" in maps:
        return expand(op, params, place, seed)
    chains = {}
    for name in names:
        own = dict(params)
        for key, values in maps.items():
            if name not in values and "default" not in values:
                raise RecipeError(f"`{key}` has no value for `{name}`", op, "or give a `default`")
            own[key] = values.get(name, values.get("default"))
        chains[name] = expand(op, own, place, seed)
    steps = next(iter(chains.values()))
    middle = split(steps)[1]
    before = [replace(chain[at], expert=n) for at in range(middle) for n, chain in chains.items()]
    after = {name: chain[middle:] for name, chain in chains.items()}
    return before + [
        _agreed({n: c[at] for n, c in after.items()}) for at in range(len(steps[middle:]))
    ]


def _agreed(stages: Mapping[str, Stage]) -> Stage:
    """Return an op that sees all experts at once, from what their own values make of it.

    Raises:
        RecipeError: experts differ in a parameter that takes no map.
    """
    first = next(iter(stages.values()))
    params = dict(first.params)
    for key in params:
        each = {name: stage.params[key] for name, stage in stages.items()}
        if any(value != params[key] for value in each.values()):
            if not get(first.op).parameters[key].per_expert:
                what = f"`{first.op}` takes one value, not one for each expert: {key}"
                raise RecipeError(what, first.op)
            params[key] = each
    return replace(first, params=params)


def _in_order(
    op: str, weights: Sequence[float] | Mapping[str, float], names: Sequence[str]
) -> list[float]:
    if isinstance(weights, Mapping):
        if set(weights) != set(names):
            raise RecipeError(f"weights for {', '.join(weights)}; deltas {', '.join(names)}", op)
        return [float(weights[name]) for name in names]
    if len(weights) != len(names):
        raise RecipeError(f"{len(weights)} weights for {len(names)} deltas", op)
    return [float(weight) for weight in weights]


def _require_shapes(op: str, deltas: Mapping[str, Tensor], base: Tensor | None) -> None:
    every = {**({"base": base} if base is not None else {}), **deltas}
    if len({tensor.shape for tensor in every.values()}) > 1:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in every.items())
        raise RecipeError(f"the tensors differ in shape: {shapes}", op)


def merge_tensors(
    op: str,
    deltas: Sequence[Tensor] | Mapping[str, Tensor],
    *,
    base: Tensor | None = None,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    seed: int = 0,
    name: str = "",
    layer: int | None = None,
    layers: int = 1,
    role: str = "",
    calibration: Any = None,
    **params: Any,
) -> Tensor:
    """Merge tensors by one op or preset, without a recipe or files.

    Args:
        op: name of an op or a preset, such as `ties`.
        deltas: differences from the base, one an expert, by name or in order (then called
            `a`, `b`, ...). Ops on whole weights read `base + delta`.
        base: the base tensor; the result is then a weight. Without it the base counts as zeros.
        weights: one number an expert, in order or by name; 1 each if not given.
        seed: seed of random masks, which also depend on `name` and the experts' names.
        name: name of the tensor.
        layer: index of the layer that the tensor is in, of `layers`, for ops that ask.
        layers: number of layers of the model.
        role: part that the tensor plays, such as `embedding`, for ops that ask.
        calibration: for ops that read statistic files, what these hold: one tensor for each delta.
        params: the op's parameters; `lambda_` and `from_` stand for `lambda` and `from`. Those of
            transforms may be maps by expert, with a `default`.

    Returns:
        the merged tensor in fp32.

    Raises:
        RecipeError: an unknown op or parameter, a value out of range, wrong number of inputs,
            inputs of different shapes.
    """
    if not isinstance(deltas, Mapping):
        deltas = {f"{'' if i < 26 else i}{chr(97 + i % 26)}": d for i, d in enumerate(deltas)}
    if not deltas:
        raise RecipeError("there is nothing to merge", op, "give at least one delta")
    first = next(iter(deltas.values()))
    _require_shapes(op, deltas, base)
    place = Place(name=name, size=first.numel(), layer=layer, layers=layers, role=role)
    given = {key.rstrip("_"): value for key, value in params.items()}
    if calibration is not None and get(op).calibration:
        given["file"] = ""  # the statistics are in hand
    steps = _expand_for_each(op, given, place, list(deltas), seed)
    middle = split(steps)[1]
    if weights is not None and "weights" not in steps[middle].params:
        by_position = {**steps[middle].params, "weights": _in_order(op, weights, list(deltas))}
        steps[middle] = replace(steps[middle], params=by_position)
    spec = get(steps[middle].op)
    space = spec.space_for({**spec.defaults(), **steps[middle].params})
    start = first.new_zeros(first.shape).float() if base is None else base.float()
    lift = space == "weight" and base is not None
    values = {n: start + delta.float() if lift else delta.float() for n, delta in deltas.items()}
    run = Run(steps, place, first.shape, seed, {}, calibration, start)
    return finish(base, run.all(values, start if space == "weight" else None), space)
