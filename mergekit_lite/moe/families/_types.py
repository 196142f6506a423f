"""What a family of routed models is: names on disk, config entries, and what it can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mergekit_lite.moe.donors import Bias, Donor, HeadNorm

PARTS = ("gate", "up", "down")
"""The matrices of a gated feed-forward layer: down(act(gate(x)) * up(x))."""

Norm = Literal["always", "flag", "never"]
"""Whether the weights of the chosen experts are made to add up to 1: `flag` leaves it to
`norm_topk_prob`."""


@dataclass(frozen=True)
class Sizes:
    """The numbers of a routed model.

    Attributes:
        experts: routed experts of a layer, slices counted.
        split: slices that each expert is cut into; they follow each other.
        per_token: experts that a token passes.
        width: of a routed expert.
        shared_width: of the shared expert, 0 where there is none.
        routed: indices of the routed layers.
        layers: number of layers.
        identical: indices of layers all of whose experts are the base's own layer.
    """

    experts: int
    per_token: int
    width: int
    shared_width: int
    routed: tuple[int, ...]
    layers: int
    split: int = 1
    identical: tuple[int, ...] = ()

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """Indices of the layers that have one feed-forward layer."""
        with_experts = (*self.routed, *self.identical)
        return tuple(layer for layer in range(self.layers) if layer not in with_experts)


@dataclass(frozen=True)
class Shared:
    """The shared expert of a family; names follow those of the layer.

    Attributes:
        names: by part; a fused one has `gate_up` in place of `gate` and `up`.
        sigmoid: name of the row whose sigmoid weighs it, empty where it counts in full.
        needed: a layer cannot be without.
        multiple: its width is that of a routed expert, or a multiple of it.
        single: it is just as wide as a routed expert.
    """

    names: Mapping[str, str]
    sigmoid: str = ""
    needed: bool = False
    multiple: bool = True
    single: bool = False


Settings = Callable[[Donor, Sizes], Mapping[str, Any]]


@dataclass(frozen=True)
class Family:
    """A family of routed models.

    Attributes:
        name: its `model_type`.
        architecture: the class that loaders look for.
        donors: families of dense models whose other weights it holds under the same names.
        router: name of the router's matrix (experts x hidden) in a layer.
        experts: names by part with `{e}` for the expert; a family that stores all experts in one
            tensor has `gate_up` (experts x (gate rows, then up rows) x hidden) and `down`.
        settings: config entries of its own.
        correction: name of the bias that counts only in the choice of experts, empty for none.
        correction_rows: it is stored as a matrix of one row.
        shared: its shared expert, None where it has none.
        norm: whether the chosen experts' weights add up to 1.
        sigmoid: the router's scores are sigmoids, not a softmax.
        dense: which layers may be dense: `any`, only the `first` ones, or `none`.
        bias, head_norms, window: what of attention it can hold.
        partial: it can rotate a part of each head.
        latent, post_norm, interleaved: as a dense family.
        extra: entries of a donor's config that it takes over beside the usual ones.
    """

    name: str
    architecture: str
    donors: tuple[str, ...]
    router: str
    experts: Mapping[str, str]
    settings: Settings
    correction: str = ""
    correction_rows: bool = False
    shared: Shared | None = None
    norm: Norm = "always"
    sigmoid: bool = False
    dense: Literal["any", "first", "none"] = "none"
    bias: tuple[Bias, ...] = ("none",)
    head_norms: tuple[HeadNorm, ...] = ("none",)
    window: Literal["none", "uniform", "layers"] = "none"
    partial: bool = False
    extra: tuple[str, ...] = ()

    @property
    def fused(self) -> bool:
        """Whether all experts of a layer are one tensor."""
        return "gate_up" in self.experts


def named(root: str) -> dict[str, str]:
    """Return the usual names of a feed-forward module by part."""
    return {part: f"{root}.{part}_proj.weight" for part in PARTS}
