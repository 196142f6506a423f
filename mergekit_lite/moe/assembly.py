"""What is assembled: the family, the numbers, the experts in order and the gate."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mergekit_lite.checkpoint import TensorInfo
from mergekit_lite.moe.donors import Donor
from mergekit_lite.moe.families import PARTS, Family, Sizes
from mergekit_lite.moe.families.routed import EXACT, NULLS
from mergekit_lite.recipe.schema import BASE, Carve, Expand, MoeExpert, Routing, SharedExpert

_MLP = re.compile(r"(?P<root>.+\.layers\.(?P<layer>\d+))\.mlp\.(?P<part>gate|up|down)_proj\.weight")


@dataclass(frozen=True)
class MadeRow:
    """A tensor of the output that is made before the rows run.

    Attributes:
        name, shape: of the tensor; fp32 in the file of gates.
        kind: `router`, `bias` (of the choice of experts), `normal` (random entries of spread 0.02),
            `tiny` (random entries around 2^-30, whose sigmoid is a half), `zeros`, `named` (made
            under its own name), or `order`: of a carved layer, which neuron stands where; it is not
            in the output.
        layer: it belongs to.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    layer: int


@dataclass(frozen=True)
class Assembly:
    """A routed model that is to be assembled.

    Attributes:
        family: of the result.
        donor: what the base is.
        sizes: its numbers.
        experts: the routed experts, in order.
        shared: the shared expert; None where there is none.
        gate, params: the method that makes the routers, and its parameters.
        roots: name of each routed layer, such as `model.layers.3`.
        routing: what routers with code of their own do; None for a family of stock loaders.
        carve: how the base is cut into these experts; None where they are models of their own.
        settings: entries of the config that are other than usual in the family.
        expand: how experts are made of others; None where none are.
        identical: name of each layer all of whose experts are the base's own layer.
    """

    family: Family
    donor: Donor
    sizes: Sizes
    experts: tuple[MoeExpert, ...]
    shared: SharedExpert | None
    gate: str
    params: Mapping[str, Any]
    roots: Mapping[int, str]
    for_training: bool
    routing: Routing | None = None
    carve: Carve | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    expand: Expand | None = None
    identical: Mapping[int, str] = field(default_factory=dict)

    def root(self, layer: int) -> str:
        """Return the name of a layer that has experts."""
        return self.roots[layer] if layer in self.roots else self.identical[layer]

    @property
    def parents(self) -> tuple[str, ...]:
        """The inputs of which further experts are made."""
        names = [one.expert for one in self.experts if one.child is None and one.expert != BASE]
        return tuple(dict.fromkeys(names))

    @property
    def expert_map(self) -> tuple[int, ...] | None:
        """For each row of the routers the stored expert that it stands for; None: its own."""
        if self.routing is None or not self.routing.share:
            return None
        stored: dict[tuple[object, ...], int] = {}
        found = []
        for number, expert in enumerate(self.experts):
            # Noise and new neurons are drawn for each by itself.
            made = (expert.noise, expert.redraw, expert.child) != (None, None, None)
            alone = number if made else -1
            key = (expert.expert, expert.residual_scale, alone)
            found.append(stored.setdefault(key, len(stored)))
        return tuple(found)

    @property
    def stored(self) -> int:
        """Routed experts of a layer that are stored."""
        return self.sizes.experts if self.expert_map is None else max(self.expert_map) + 1

    def made_rows(self) -> Iterator[MadeRow]:
        """Yield every tensor that no input has: routers, biases, the gate of a shared expert."""
        family, hidden = self.family, self.donor.hidden
        for layer, root in self.roots.items():
            count = self.sizes.experts
            if self.carve is not None and self.carve.router == "exact":
                yield from self._exact_rows(root, layer)
            else:
                yield MadeRow(f"{root}.{family.router}", (count, hidden), "router", layer)
            if self.routing is not None and self.routing.null_experts:
                nulls = self.routing.null_experts
                yield MadeRow(f"{root}.{NULLS}", (nulls, hidden), "normal", layer)
            yield from self._beside(root, layer)
            if self.carve is not None:
                slots = self.carve.experts * self.sizes.width
                yield MadeRow(f"{root}.neurons", (slots,), "order", layer)
        for layer, root in self.identical.items():
            yield MadeRow(f"{root}.{family.router}", (self.sizes.experts, hidden), "zeros", layer)
            yield from self._beside(root, layer)

    def _beside(self, root: str, layer: int) -> Iterator[MadeRow]:
        """Yield what stands beside the rows of a router."""
        family, count = self.family, self.sizes.experts
        if family.correction:
            shape = (1, count) if family.correction_rows else (count,)
            yield MadeRow(f"{root}.{family.correction}", shape, "bias", layer)
        if self.shared is not None and family.shared is not None and family.shared.sigmoid:
            name = f"{root}.{family.shared.sigmoid}"
            yield MadeRow(name, (1, self.donor.hidden), "tiny", layer)

    def _exact_rows(self, root: str, layer: int) -> Iterator[MadeRow]:
        count, hidden = self.sizes.experts, self.donor.hidden
        for part, name in EXACT.items():
            shape = (count, hidden) if part.endswith("weight") else (count,)
            kind = "router" if part == "gate_weight" else "named"
            yield MadeRow(f"{root}.{name}", shape, kind, layer)

    def plain(self) -> dict[str, Any]:
        """Return what a run needs to make the gates, and what the manifest says, as plain data."""
        sizes = self.sizes
        return {
            "target": self.family.name,
            "experts": [
                expert.model_dump(mode="json", exclude_defaults=True) for expert in self.experts
            ],
            **({"expand": self.expand.model_dump(mode="json")} if self.expand else {}),
            "experts_per_token": sizes.per_token,
            **({"expert_map": list(self.expert_map)} if self.expert_map else {}),
            **({"split": sizes.split} if sizes.split > 1 else {}),
            "hidden": self.donor.hidden,
            "expert_width": sizes.width,
            "shared": None
            if self.shared is None
            else {**self.shared.model_dump(mode="json"), "width": sizes.shared_width},
            "layers": list(sizes.routed),
            **({"identical": list(sizes.identical)} if sizes.identical else {}),
            **({"routing": self.routing.model_dump(mode="json")} if self.routing else {}),
            "gate": {"method": self.gate, "params": dict(self.params)},
            **self._carved(),
            "for_training": self.for_training,
            "rows": [[row.name, list(row.shape), row.kind, row.layer] for row in self.made_rows()],
        }

    def _carved(self) -> dict[str, Any]:
        if self.carve is None:
            return {}
        return {
            "carve": {**self.carve.model_dump(mode="json"), "width": self.donor.width},
            "settings": dict(self.settings),
        }


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward layers of a dense model.

    Attributes:
        names: layer -> part -> tensor.
        roots: layer -> name of the layer.
    """

    names: Mapping[int, Mapping[str, str]]
    roots: Mapping[int, str]

    @classmethod
    def of(cls, tensors: Mapping[str, TensorInfo]) -> FeedForward:
        """Return the feed-forward layers among tensors of these names."""
        names: dict[int, dict[str, str]] = {}
        roots: dict[int, str] = {}
        for name in tensors:
            if match := _MLP.fullmatch(name):
                layer = int(match["layer"])
                names.setdefault(layer, {})[match["part"]] = name
                roots[layer] = match["root"]
        whole = {layer: found for layer, found in names.items() if len(found) == len(PARTS)}
        return cls(dict(sorted(whole.items())), {layer: roots[layer] for layer in sorted(whole)})

    @property
    def all_names(self) -> frozenset[str]:
        """Every tensor of theirs."""
        return frozenset(name for found in self.names.values() for name in found.values())
