"""Where a routed base keeps what belongs to its experts: matrices, routers, biases of choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mergekit_lite.checkpoint import TensorInfo, layer_of
from mergekit_lite.plan import configs
from mergekit_lite.plan.routed.layers import ALL, Form, Slot, routed_layers

_ROUTERS = ("gate.weight", "router.weight", "router.layer.weight", "gate.wg.weight")
_BIASES = (
    "gate.e_score_correction_bias", "e_score_correction_bias",
    "moe_statics.e_score_correction_bias", "router.bias",
)  # fmt: skip
"""Names below a routed module of the numbers that count only, or also, in the choice of experts."""


@dataclass(frozen=True)
class Module:
    """One routed feed-forward module.

    Attributes:
        root: its name.
        layer: index of its layer.
        tensors: its experts' tensors by expert (or `ALL`), projection and leaf.
        form: how tensors of all experts are laid out.
        experts: how many it has.
        router: name of the router's matrix.
        bias: name of its bias of choice, empty where it has none.
    """

    root: str
    layer: int
    tensors: Mapping[Slot, str]
    form: Form
    experts: int
    router: str
    bias: str

    @property
    def stacked(self) -> bool:
        """Whether its tensors hold all experts."""
        return any(expert == ALL for expert, _, _ in self.tensors)

    @property
    def routers(self) -> tuple[str, ...]:
        """Tensors with a row or a number for each expert."""
        return tuple(name for name in (self.router, self.bias) if name)

    def names(self, expert: int) -> dict[tuple[str, str], str]:
        """Return the tensors of one expert, or of all, by projection and leaf."""
        wanted = ALL if self.stacked else expert
        return {(p, leaf): name for (e, p, leaf), name in self.tensors.items() if e == wanted}

    def own(self, name: str) -> str:
        """Return a name below the module."""
        return name.removeprefix(f"{self.root}.")


def modules_of(tensors: Mapping[str, TensorInfo], config: configs.Config) -> dict[str, Module]:
    """Return the routed modules of a model that are whole, by name."""
    found = {}
    for root, layer in routed_layers(tensors, config).items():
        router = _below(root, _ROUTERS, tensors)
        if not router or len(tensors[router].shape) != 2:
            continue
        bias = _below(root, _BIASES, tensors)
        found[root] = Module(
            root,
            layer_of(root) or 0,
            dict(layer.tensors),
            layer.form,
            tensors[router].shape[0],
            router,
            bias,
        )
    return found


def _below(root: str, names: tuple[str, ...], tensors: Mapping[str, TensorInfo]) -> str:
    return next((f"{root}.{name}" for name in names if f"{root}.{name}" in tensors), "")
