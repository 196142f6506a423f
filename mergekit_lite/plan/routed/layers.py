"""Finds the routed experts of each layer of a model, and in which layout they are stored."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mergekit_lite.checkpoint import TensorInfo
from mergekit_lite.plan import configs

ALL: Final = -1
"""In place of an expert's number: a tensor that holds all of a layer's experts."""

Slot = tuple[int, str, str]
"""(expert, projection, `weight` or `bias`): what a tensor is, whatever its name."""

_EACH = re.compile(
    r"(?P<root>.+)\.experts\.(?P<expert>\d+)"
    r"\.(?P<part>gate_proj|up_proj|down_proj|w1|w2|w3)\.(?P<leaf>weight|bias)$"
)
_FUSED = re.compile(
    r"(?P<root>.+)\.experts\.(?P<part>gate_up_proj|up_proj|down_proj)(?P<bias>_bias)?$"
)
_PARALLEL = re.compile(r"(?P<root>.+)\.(?P<part>input_linear|output_linear)\.weight$")
_PARTS: Final = {
    "w1": "gate_proj",
    "w3": "up_proj",
    "w2": "down_proj",
    "input_linear": "gate_up_proj",
    "output_linear": "down_proj",
}

_ROUTERS: Final = (
    ("gate.weight", "router.weight", "router.layer.weight", "gate.wg.weight"),
    ("gate.bias", "router.bias"),
    ("gate.e_score_correction_bias", "e_score_correction_bias"),
)
"""Names below a routed layer's module that families have for the same tensor."""

_ALTERNATING: Final = frozenset({"gpt_oss"})
_IN_HALVES: Final = frozenset({"llama4", "llama4_text", "openai_privacy_filter", "aria"})
"""Model types whose fused experts are stored (in x out): gate and up by turns, or gate first."""


@dataclass(frozen=True, slots=True)
class Form:
    """How fused experts lie in their tensors.

    Attributes:
        transposed: each expert's matrix is stored (in x out).
        alternating: gate and up outputs take turns, else all of gate's come first; None where
            nothing tells.
    """

    transposed: bool = False
    alternating: bool | None = False


@dataclass
class RoutedLayer:
    """The routed experts of one layer.

    Attributes:
        root: module that owns `experts`, and the router.
        tensors: name of the tensor in each place.
        form: how fused tensors are laid out.
    """

    root: str
    tensors: dict[Slot, str] = field(default_factory=dict)
    form: Form = Form()

    @property
    def experts(self) -> int:
        """Number of experts that are stored one by one."""
        return 1 + max(expert for expert, _, _ in self.tensors)

    @property
    def fused(self) -> bool:
        """Whether one tensor holds all experts."""
        return any(expert == ALL for expert, _, _ in self.tensors)

    def holder(self, part: str, leaf: str) -> Slot | None:
        """Return the place of the fused tensor in which a projection is."""
        both = (ALL, "gate_up_proj", leaf)
        if part != "down_proj" and both in self.tensors:
            return both
        alone = (ALL, part, leaf)
        return alone if alone in self.tensors else None


def routed_layers(
    tensors: Mapping[str, TensorInfo], config: configs.Config
) -> dict[str, RoutedLayer]:
    """Return the routed layers among a model's tensors, by their modules."""
    found: dict[str, RoutedLayer] = {}
    for name, info in tensors.items():
        if place := _place(name, info):
            root, slot = place
            found.setdefault(root, RoutedLayer(root)).tensors[slot] = name
    for layer in found.values():
        layer.form = _form(layer, tensors, _model_types(config))
    return found


def single_place(name: str) -> tuple[str, Slot] | None:
    """Return the module and the place of a tensor of one expert; None for any other."""
    match = _EACH.match(name)
    if match is None:
        return None
    part = _PARTS.get(match["part"], match["part"])
    return match["root"], (int(match["expert"]), part, match["leaf"])


def same_layer(root: str, others: Mapping[str, RoutedLayer]) -> RoutedLayer | None:
    """Return the layer of another model that is in the place of a module, under whatever name."""
    if root in others:
        return others[root]
    parent = root.rpartition(".")[0]
    found = (others[name] for name in sorted(others) if name.rpartition(".")[0] == parent)
    return next(found, None)


def name_below(root: str, rest: str, names: Container[str]) -> str | None:
    """Return what is called `rest` below a routed layer's module, as one of these names.

    Args:
        root: the module that has those names.
        rest: such as `gate.weight`, which other families call `router.weight`.
        names: all names of the model.
    """
    choices = [rest, *(other for group in _ROUTERS if rest in group for other in group)]
    return next((f"{root}.{c}" for c in choices if f"{root}.{c}" in names), None)


def _place(name: str, info: TensorInfo) -> tuple[str, Slot] | None:
    """Return the module and the place of a tensor; None for one that is of no routed expert."""
    if found := single_place(name):
        return found
    if match := _FUSED.match(name):
        return match["root"], (ALL, match["part"], "bias" if match["bias"] else "weight")
    if len(info.shape) == 3 and (match := _PARALLEL.match(name)):
        return match["root"], (ALL, _PARTS[match["part"]], "weight")
    return None


def _model_types(config: configs.Config) -> set[str]:
    return {configs.model_type(level) for level in configs.levels(config).values()}


def _form(layer: RoutedLayer, tensors: Mapping[str, TensorInfo], types: Iterable[str]) -> Form:
    """Return the layout of fused experts, from the shapes of both tensors and the model type."""
    gate_up = layer.tensors.get((ALL, "gate_up_proj", "weight"))
    down = layer.tensors.get((ALL, "down_proj", "weight"))
    known = set(types)
    if gate_up is None or down is None:
        return Form()
    transposed = _is_transposed(tensors[gate_up].shape, tensors[down].shape)
    if not transposed:
        # A file of this family that is not as its class stores it may have either order.
        return Form(False, None if known & _ALTERNATING else False)
    if known & _ALTERNATING:
        return Form(True, True)
    return Form(True, False if known & _IN_HALVES else None)


def _is_transposed(gate_up: tuple[int, ...], down: tuple[int, ...]) -> bool:
    """Return whether both fused tensors are (experts x in x out); the sizes of one do not tell."""
    if len(gate_up) != 3 or len(down) != 3:
        return False
    return gate_up[2] == 2 * down[1] and gate_up[1] == down[2]
