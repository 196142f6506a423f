"""From what a recipe says to the plain values in force for one tensor.

A value is a scalar, a gradient over depth (list), or a map of those by expert. From weak to
strong: the op's default, its default in the recipe's compat mode, the step, the rules' `set`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergekit_lite.checkpoint.names import role_of
from mergekit_lite.errors import RecipeError
from mergekit_lite.ops import OpSpec, registry
from mergekit_lite.ops._place import Place, random_key
from mergekit_lite.recipe.schema import BASE, Recipe, RecipeStep

DEFAULT = "default"
Params = dict[str, Any]


@dataclass(frozen=True)
class Spot:
    """The tensor, and for transforms the expert, that values are resolved for.

    Attributes:
        name: output name of the tensor.
        layer: its layer, None outside the layers.
        layers: number of layers of the model.
        expert: the expert; None leaves per-expert maps as maps.
        seed: the recipe's, for presets that draw.
        compat: the recipe's compat mode.
    """

    name: str = ""
    layer: int | None = None
    layers: int = 1
    expert: str | None = None
    seed: int = 0
    compat: str = "none"


def resolve(
    value: Any,
    *,
    expert: str | None,
    layer: int | None,
    layers: int,
    name: str = "",
    compat: str = "none",
) -> Any:
    """Return the plain value in force for one expert and tensor.

    Args:
        value: a scalar, a gradient (list over depth) or a map of those by expert.
        expert: whose value; None resolves the gradients inside a map and keeps the map.
        layer: the tensor's layer, None outside the layers.
        layers: number of layers of the model.
        name: the tensor's name; outside the layers it tells the embedding from the rest.
        compat: `mergekit` gives all tensors outside the layers the first value.

    Raises:
        KeyError: the map has neither this expert nor `default`.
    """
    if isinstance(value, Mapping):
        if expert is None:
            where: Params = {"layer": layer, "layers": layers, "name": name, "compat": compat}
            return {key: resolve(item, expert=None, **where) for key, item in value.items()}
        if expert not in value and DEFAULT not in value:
            raise KeyError(expert)
        value = value[expert] if expert in value else value[DEFAULT]
    if isinstance(value, list | tuple):
        return interpolate(value, _depth(layer, layers, name, compat))
    return value


def _depth(layer: int | None, layers: int, name: str, compat: str) -> float:
    if layer is None:
        return 0.0 if compat == "mergekit" or role_of(name) == "embedding" else 1.0
    if layers > 1:
        return layer / (layers - 1)
    return 1.0 if compat == "mergekit" else 0.0


def interpolate(points: Sequence[float], depth: float) -> float:
    """Return the value of a gradient at a depth from 0 to 1."""
    place = depth * (len(points) - 1)
    left = min(math.floor(place), len(points) - 1)
    right = min(left + 1, len(points) - 1)
    return points[left] + (points[right] - points[left]) * (place - left)


def expand(
    steps: Sequence[RecipeStep | tuple[str, Mapping[str, Any]]],
    *,
    layer: int | None = None,
    layers: int = 1,
    name: str = "",
    expert: str | None = None,
    sets: Sequence[Mapping[str, Any]] = (),
    compat: str = "none",
    seed: int = 0,
) -> list[tuple[str, Params]]:
    """Return the chain with presets written out and every parameter resolved.

    Args:
        steps: of the recipe, a rule or an expert.
        layer, layers, name, expert: see `resolve`. Without an expert, per-expert maps stay maps.
        sets: the `set` of every rule that matches the tensor, in the rules' order.
        compat: `none` or `mergekit`.
        seed: the recipe's seed.

    Raises:
        RecipeError: a preset refuses its parameters.
    """
    spot = Spot(name, layer, layers, expert, seed, compat)
    result: list[tuple[str, Params]] = []
    for step in steps:
        op, given = (step.op, step.params) if isinstance(step, RecipeStep) else step
        result += _expand(op, given, spot, sets, compat, frozenset(), ())
    return result


def _expand(
    op: str,
    given: Mapping[str, Any],
    spot: Spot,
    sets: Sequence[Mapping[str, Any]],
    compat: str,
    settled: frozenset[str],
    inside: tuple[str, ...],
) -> list[tuple[str, Params]]:
    spec = registry()[op]
    params = _params(spec, given, spot, sets, compat, settled)
    if spec.kind != "preset":
        return [(op, params)]
    if op in inside:
        raise RecipeError(f"presets expand to one another: {' -> '.join((*inside, op))}")
    weights = params.pop("weights", None)
    # A bare name in `set` that a preset knows is the preset's; what it hands on is not set again.
    settled |= spec.parameters.keys()
    result: list[tuple[str, Params]] = []
    for inner, inner_given in _call(spec, params, spot):
        if weights is not None and registry()[inner].kind in ("combine", "preset"):
            inner_given = {**inner_given, "weights": weights}
        result += _expand(inner, inner_given, spot, sets, compat, settled, (*inside, op))
    return result


def _call(spec: OpSpec, params: Params, spot: Spot) -> list[tuple[str, Mapping[str, Any]]]:
    arguments = spec.arguments(params)
    if "place" in spec.specials:
        key = random_key(spot.seed, spec.name, "", "")
        arguments["place"] = Place(
            name=spot.name,
            layer=spot.layer,
            layers=spot.layers,
            key=key,
            role=role_of(spot.name),
        )
    try:
        return list(spec.function(**arguments))
    except (ValueError, TypeError) as error:
        raise RecipeError(f"`{spec.name}`: {error}") from None


def _params(
    spec: OpSpec,
    given: Mapping[str, Any],
    spot: Spot,
    sets: Sequence[Mapping[str, Any]],
    compat: str,
    settled: frozenset[str],
) -> Params:
    params = spec.defaults(compat)
    layers_of_values = [given]
    for values in sets:
        layers_of_values.append(
            {key: v for key, v in values.items() if key in spec.parameters and key not in settled}
        )
        prefix = f"{spec.name}."
        layers_of_values.append(
            {key.removeprefix(prefix): v for key, v in values.items() if key.startswith(prefix)}
        )
    for values in layers_of_values:
        for key, value in values.items():
            if key in spec.parameters and spec.parameters[key].listed:
                params[key] = value
                continue
            whole = key == "weights"  # the map is the value: it names the inputs
            _lay(params, key, value, replace(spot, expert=None) if whole else spot)
            _round(spec, params, key)
    return params


def _lay(params: Params, key: str, value: Any, spot: Spot) -> None:
    """Put a value over the one in force; experts that a map does not name keep theirs."""
    where: Params = {
        "layer": spot.layer,
        "layers": spot.layers,
        "name": spot.name,
        "compat": spot.compat,
    }
    if isinstance(value, Mapping) and spot.expert is not None:
        if spot.expert not in value and DEFAULT not in value:
            return
    elif isinstance(value, Mapping) and key != "weights" and key in params:
        under = params[key] if isinstance(params[key], Mapping) else {DEFAULT: params[key]}
        params[key] = {**under, **resolve(value, expert=None, **where)}
        return
    params[key] = resolve(value, expert=spot.expert, **where)


def _round(spec: OpSpec, params: Params, key: str) -> None:
    parameter = spec.parameters.get(key)
    value = params.get(key)
    if parameter and isinstance(value, float) and parameter.type is int:
        params[key] = round(value)


@dataclass(frozen=True)
class Chain:
    """What is done to one tensor, with nothing left to resolve.

    Attributes:
        transforms: by input, in the recipe's order: its own steps, then the shared transforms.
        combine: the op that makes one tensor out of the inputs.
        params: the combine's parameters, without weights.
        weights: weight of each input, in the order in which they are read; `base` may be one of
            them where the combine works on whole weights.
        posts: what is done to the merged delta.
        weighs_itself: the step gives `weights` of its own, so the experts' do not count.
    """

    transforms: Mapping[str, tuple[tuple[str, Params], ...]]
    combine: str
    params: Params
    weights: Mapping[str, float]
    posts: tuple[tuple[str, Params], ...] = ()
    weighs_itself: bool = False


def chain(
    recipe: Recipe,
    steps: Sequence[RecipeStep],
    *,
    name: str = "",
    layer: int | None = None,
    layers: int = 1,
    sets: Sequence[Mapping[str, Any]] = (),
    experts: Sequence[str] | None = None,
) -> Chain:
    """Return the fully resolved chain for one tensor.

    Args:
        recipe: whose experts, weights and compat mode are in force.
        steps: `recipe.steps` or those of the rule that won.
        name, layer, layers: the tensor, see `resolve`.
        sets: the `set` of every rule that matches the tensor, in the rules' order.
        experts: those that have a part in it, all if None.

    Raises:
        RecipeError: a preset refuses its parameters, or weights are given to an expert that has
            no part in it.
    """
    part = tuple(name for name in recipe.experts if experts is None or name in experts)
    where: Params = {"name": name, "layer": layer, "layers": layers}
    how: Params = {**where, "sets": sets, "compat": recipe.compat, "seed": recipe.seed}
    kind = {name: spec.kind for name, spec in registry().items()}
    shared = {expert: expand(steps, expert=expert, **how) for expert in part}
    after = [
        [step for step in steps if kind[step[0]] != "transform"]
        for steps in (shared.values() or [expand(steps, **how)])
    ]
    (combine, params), *posts = _agreed(after, tuple(shared))
    own_weights = params.pop("weights", None)
    _all_have_part(combine, own_weights, part)
    names = [e for e in part if own_weights is None or e in own_weights]
    transforms = {}
    for expert in names:
        mine = expand(recipe.experts[expert].steps, expert=expert, **how) + shared[expert]
        transforms[expert] = tuple(step for step in mine if kind[step[0]] == "transform")
    if own_weights and "base" in own_weights:
        names = ["base", *names]
    weights = {e: _weight(recipe, e, own_weights, sets, where) for e in names}
    return Chain(transforms, combine, params, weights, tuple(posts), own_weights is not None)


def _all_have_part(op: str, weights: Mapping[str, Any] | None, experts: Sequence[str]) -> None:
    if left := [name for name in weights or () if name not in (*experts, BASE)]:
        raise RecipeError(
            f"`{op}` weighs {', '.join(f'`{name}`' for name in left)}, of which the slice has no"
            " layers",
            hint="give the slice `steps` of its own",
        )


def _agreed(
    after: Sequence[list[tuple[str, Params]]], experts: Sequence[str]
) -> list[tuple[str, Params]]:
    """Join what each expert's values make of the ops that see all experts at once."""
    result = []
    for views in zip(*after, strict=True):
        op, params = views[0][0], dict(views[0][1])
        for key in params:
            values = [view[1].get(key) for view in views]
            if any(value != values[0] for value in values):
                parameter = registry()[op].parameters[key]
                if not parameter.per_expert:
                    raise RecipeError(f"`{key}` of `{op}` takes one value, not one for each expert")
                params[key] = dict(zip(experts, values, strict=True))
        result.append((op, params))
    return result


def _weight(
    recipe: Recipe,
    expert: str,
    own: Mapping[str, float] | None,
    sets: Sequence[Mapping[str, Any]],
    where: Params,
) -> float:
    found: Params = {"weight": 1.0}
    given = own[expert] if own is not None else recipe.experts[expert].weight
    for value in (given, *(values.get("weight") for values in sets)):
        if value is not None:
            _lay(found, "weight", value, Spot(expert=expert, compat=recipe.compat, **where))
    return float(found["weight"])
