"""The stack of layers from which slices choose, in each input."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from mergekit_lite.checkpoint import TensorInfo, layer_of
from mergekit_lite.checkpoint.names import is_side_stack, stack_of
from mergekit_lite.plan.configs import Config, levels
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.plan.names import few
from mergekit_lite.recipe.schema import Recipe

COUNTS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers",
    "decoder_layers", "num_encoder_layers", "encoder_layers", "num_transformer_layers",
)  # fmt: skip
"""Keys under which configs name a number of layers."""


@dataclass
class Stack:
    """The layers of one stack of one input.

    Attributes:
        name: what stands before the layer's number, such as `model.layers`.
        depth: layers that the config counts; those beyond (of a draft head) are not sliced.
        layers: layer -> rest of the name -> tensor, in the base's terms.
    """

    name: str
    depth: int = 0
    layers: dict[int, dict[str, TensorInfo]] = field(default_factory=dict)

    @property
    def beyond(self) -> list[int]:
        """Layers past those that the config counts."""
        return sorted(layer for layer in self.layers if layer >= self.depth)


def count_keys(level: Mapping[str, object], stack: str, others: Collection[str]) -> list[str]:
    """Return the keys of a config that name the number of layers of a stack.

    Args:
        level: a config, or a part of one.
        stack: name of the stack.
        others: the model's other main stacks, each with a number of layers of its own.
    """
    keys = [key for key in COUNTS if isinstance(level.get(key), int)]
    if not others:
        return keys
    # Encoder-decoders count the encoder under the general names.
    mine = "decoder" if "decoder" in stack else "encoder"
    own = [key for key in keys if mine in key]
    general = [key for key in keys if "decoder" not in key and "encoder" not in key]
    return own if mine == "decoder" else own + general


def counted(config: Config, stack: str, others: Collection[str]) -> int | None:
    """Return the number of layers that a config names for a stack."""
    for level in levels(config).values():
        for key in count_keys(level, stack, others):
            return int(level[key])
    return None


def main_stacks(names: Iterable[str]) -> dict[str, int]:
    """Return the stacks of a model and their depths; side stacks only where there is no other."""
    found: dict[str, int] = {}
    for name in names:
        layer = layer_of(name)
        if layer is not None:
            stack = stack_of(name)
            found[stack] = max(found.get(stack, 0), layer + 1)
    main = {stack: depth for stack, depth in found.items() if not is_side_stack(stack)}
    return main or found


def chosen_stack(recipe: Recipe, base: View, findings: Findings) -> str | None:
    """Return the stack that the recipe's slices are about; None where that cannot be told."""
    stacks = main_stacks(base.tensors)
    asked = {(part.stack or "", part.where or recipe.at("slices")) for part in recipe.slices}
    names = {name for name, _ in asked}
    where = min(place for _, place in asked)
    if not stacks:
        findings.problem("the base has no layers to slice", where)
        return None
    if len(names) > 1:
        what = f"the slices name several stacks: {few(sorted(names))}"
        findings.problem(what, where, "slice one stack in a run, and the other in a second run")
        return None
    name = names.pop()
    fit = [stack for stack in stacks if not name or stack == name or stack.endswith(f".{name}")]
    if not name and len(fit) > 1:
        counts = {level[key] for level in levels(base.model.config).values() for key in COUNTS
                  if key in level}  # fmt: skip
        # Numbered modules beside the layers, such as a head of several linear maps.
        deep = [stack for stack in fit if stacks[stack] in counts and stacks[stack] > 1]
        fit = deep if len(deep) == 1 else fit
    if len(fit) == 1:
        return fit[0]
    what = "the base has several stacks of layers" if fit else f"the base has no stack `{name}`"
    findings.problem(
        f"{what}: {few(sorted(stacks))}", where, "name one: `stack: ...` in each slice"
    )
    return None


def stack_in(view: View, name: str, others: Collection[str]) -> Stack:
    """Return a stack as an input has it; an adapter has the base's."""
    found = Stack(name)
    for term, info in view.tensors.items():
        layer = layer_of(term)
        if layer is not None and stack_of(term) == name:
            rest = term.removeprefix(f"{name}.{layer}.")
            found.layers.setdefault(layer, {})[rest] = info
    stored = max(found.layers, default=-1) + 1
    found.depth = min(stored, counted(view.model.config, name, others) or stored)
    return found
