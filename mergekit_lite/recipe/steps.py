"""Chains of ops against the op registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mergekit_lite.errors import nearest
from mergekit_lite.ops import OpSpec
from mergekit_lite.ops._spec import canonical, names
from mergekit_lite.recipe.marks import Mark, Node, Problems, kind_of
from mergekit_lite.recipe.places import belongs
from mergekit_lite.recipe.values import DEFAULT, WEIGHT, Reader

BASE = "base"


@dataclass(frozen=True)
class StepNode:
    """One step as read: its op, its parameters and its places.

    Attributes:
        op: name as written.
        params: values with number-like text turned into numbers.
        mark: place of the op's name.
        spec: the op, None when there is no such op.
        sound: nothing is wrong with its parameters.
    """

    op: str
    params: Mapping[str, Any]
    mark: Mark
    spec: OpSpec | None
    sound: bool = False

    def plain(self) -> dict[str, Any]:
        return {"op": self.op, "params": dict(self.params), "where": str(self.mark)}


@dataclass(frozen=True)
class Chains:
    """Reads the chains of one recipe.

    Attributes:
        specs: the op registry.
        experts: names of the recipe's experts.
        problems: where to note what is wrong.
    """

    specs: Mapping[str, OpSpec]
    experts: tuple[str, ...]
    problems: Problems
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reader", Reader(self.experts, self.problems))

    def read(self, node: Node) -> list[StepNode]:
        """Return the steps of a chain; what cannot be read is noted and left out."""
        if not isinstance(node.value, list):
            example = node.value if isinstance(node.value, str) else "ties: {density: 0.2}"
            what = f"steps must be a list of ops, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, f"write `steps: [{example}]`")
            return []
        if not node.value:
            self.problems.add("the list of steps is empty", node.mark, "name at least one op")
        return [step for item in node.value if (step := self._step(item)) is not None]

    def _step(self, node: Node) -> StepNode | None:
        value = node.value
        if isinstance(value, str):
            name, params, mark = value, node.with_value({}), node.mark
        elif isinstance(value, dict) and len(value) == 1:
            ((name, params),) = value.items()
            mark = params.key
        else:
            self._malformed(node)
            return None
        if params.value is None:
            params = params.with_value({})
        spec = self.specs.get(canonical(name, self.specs))
        if spec is None:
            listed = f"`mergekit-lite ops list` shows all {len(self.specs)} ops"
            near = nearest(name, names(self.specs))
            self.problems.add(f"unknown op `{name}`", mark, near or listed)
            return StepNode(name, {}, mark, None)
        if not isinstance(params.value, dict):
            example = next(iter(spec.parameters), "")
            hint = f"write `{name}: {{{example}: ...}}`" if example else f"write just `{name}`"
            what = f"the parameters of `{name}` must be a mapping, not {kind_of(params.value)}"
            self.problems.add(what, params.mark, hint)
            return StepNode(spec.name, {}, mark, spec)
        before = len(self.problems)
        read = self._params(spec, params.value, mark)
        return StepNode(spec.name, read, mark, spec, sound=len(self.problems) == before)

    def _malformed(self, node: Node) -> None:
        known = [key for key in node.entries() if key in names(self.specs)]
        if len(node.entries()) > 1:
            what = f"a step is one op, this one has {len(node.value)} keys"
            hint = "begin each op with `- `"
            if known:
                hint += f", and indent its parameters: `{known[0]}: {{name: value}}`"
            self.problems.add(what, node.mark, hint)
        else:
            hint = "write `- ties` or `- ties: {density: 0.2}`"
            self.problems.add(f"a step is an op, not {kind_of(node.value)}", node.mark, hint)

    def _params(self, spec: OpSpec, nodes: dict[str, Node], mark: Mark) -> dict[str, Any]:
        params: dict[str, Any] = {}
        before = len(self.problems)
        for name, node in nodes.items():
            parameter = spec.parameters.get(name)
            if parameter is not None:
                maps = parameter.per_expert or spec.kind == "transform"
                params[name] = self.reader.read(parameter, node, spec.name, maps=maps)
                self._covers_all(spec, name, params[name], node)
            elif name == "weights" and takes_weights(spec):
                params |= self._weights(spec, node)
            else:
                self._unknown(spec, name, node)
        for name, parameter in spec.parameters.items():
            if parameter.required and name not in nodes:
                what = f"`{spec.name}` needs `{name}`"
                self.problems.add(what, mark, f"{name}: {parameter.doc}" if parameter.doc else "")
        if len(self.problems) == before:
            self._together(spec, params, mark)
        return params

    def _together(self, spec: OpSpec, params: dict[str, Any], mark: Mark) -> None:
        """Ask the op whether its values fit one another, where they are the same everywhere."""
        lists = {name for name, parameter in spec.parameters.items() if parameter.listed}
        varied = [value for name, value in params.items() if name not in lists]
        plain = not any(isinstance(value, dict | list) for value in varied)
        if spec.check is not None and plain:
            for what in spec.check({**spec.defaults(), **params}):
                self.problems.add(f"`{spec.name}`: {what}", mark)

    def _covers_all(self, spec: OpSpec, name: str, value: Any, node: Node) -> None:
        if not isinstance(value, dict) or DEFAULT in value or not spec.parameters[name].required:
            return
        left = [expert for expert in self.experts if expert not in value]
        if left:
            what = f"`{name}` of `{spec.name}` has no value for {', '.join(left)}"
            self.problems.add(what, node.mark, "add them, or a `default`")

    def _weights(self, spec: OpSpec, node: Node) -> dict[str, Any]:
        """Read a combine's own `weights`: a map of the inputs it takes to their weights."""
        if not isinstance(node.value, dict):
            what = f"`weights` of `{spec.name}` must be a map by expert, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, "write `weights: {NAME: 0.5, ...}`")
            return {}
        if DEFAULT in node.value:
            what = "`weights` names the inputs, so it takes no `default`"
            self.problems.add(what, node.value[DEFAULT].key, "give each input its weight")
        also = (BASE,) if spec.space == "weight" or "space" in spec.parameters else ()
        if BASE in node.value and not also:
            what = f"`{spec.name}` works on differences to the base, so the base has no weight"
            self.problems.add(what, node.value[BASE].key, "remove it; `scale` scales the result")
            also = (BASE,)
        parameter = replace(WEIGHT, name="weights")
        return {"weights": self.reader.read(parameter, node, spec.name, maps=True, also=also)}

    def _unknown(self, spec: OpSpec, name: str, node: Node) -> None:
        near = nearest(name, spec.parameters)
        listed = ", ".join(f"`{known}`" for known in spec.parameters) or "none"
        hint = near or belongs(name, self.specs) or f"parameters of `{spec.name}`: {listed}"
        self.problems.add(f"`{spec.name}` has no parameter `{name}`", node.key, hint)


def takes_weights(spec: OpSpec) -> bool:
    """Return whether a step with this op may give `weights` of its own, which name its inputs."""
    if spec.kind == "preset":
        # Those that work on whole weights, or are told experts' names, choose their inputs.
        chosen = any(parameter.expert_name for parameter in spec.parameters.values())
        return spec.space == "delta" and not chosen
    picks = "weights" in spec.specials or spec.experts[1] is not None
    return spec.kind == "combine" and picks
