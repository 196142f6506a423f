"""What a merged model needs that no input has: orders of neurons, router rows, fitted matrices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mergekit_lite.moe.fewer.stored import RoutedModule
from mergekit_lite.moe.merge.groups import Group
from mergekit_lite.moe.merge.matrices import Held, Matrices
from mergekit_lite.plan.inputs import View
from mergekit_lite.recipe.schema import MergeExperts

TOKENS = 4096
"""Most tokens that are measured of a layer."""
ACTIVATIONS = 8 * 2**25
"""Most bytes that what neurons say of some of them takes in memory."""


@dataclass(frozen=True)
class Made:
    """A tensor that is made before rows run.

    Attributes:
        name: in the file where they are.
        shape: of it.
        kind: an `order` of neurons, rows of a `router`, or a `down` projection.
        root: the routed module that it belongs to.
        lead: of the group that it belongs to; -1 where it belongs to all.
        member: the expert whose neurons are put in order.
        tensor: the base's tensor that it is of.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["order", "router", "down"]
    root: str
    lead: int = -1
    member: int = -1
    tensor: str = ""

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return asdict(self)

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> Made:
        """Rebuild it from `plain`."""
        return cls(**{**raw, "shape": tuple(raw["shape"])})


def made_of(
    merge: MergeExperts,
    modules: Mapping[str, RoutedModule],
    groups: Mapping[str, tuple[Group, ...]],
    matrices: Mapping[str, Matrices],
    base: View,
) -> Iterator[Made]:
    """Yield all that is to be made, module by module."""
    for root, own in modules.items():
        stored = matrices[root]
        for group in groups[root]:
            if merge.align != "none" and not group.moved:
                for member in group.members:
                    if member != group.lead:
                        yield from _orders(root, stored, group.lead, member)
            if merge.refit_down is not None and not group.moved:
                size = (stored.hidden, stored.neurons)
                yield Made(refit_name(root, group.lead), size, "down", root, group.lead)
        if merge.router in ("frequency", "lse"):
            for name in own.routers:
                shape = base.tensors[name].shape
                flat = len(shape) == 2 and shape[0] == 1 and shape[1] == own.experts
                fewer = len(groups[root])
                cut = (1, fewer) if flat else (fewer, *shape[1:])
                yield Made(router_name(name), cut, "router", root, tensor=name)


def _orders(root: str, stored: Matrices, lead: int, member: int) -> Iterator[Made]:
    if not stored.stacked:
        yield Made(order_name(root, member), (stored.neurons,), "order", root, lead, member)
        return
    for held in stored.held:
        if held.axis:
            name = order_name(root, member, held)
            along = held.rows if held.axis == "rows" else held.columns
            yield Made(name, (along,), "order", root, lead, member, held.name)


def working(
    merge: MergeExperts,
    made: Iterable[Made],
    groups: Mapping[str, tuple[Group, ...]],
    matrices: Mapping[str, Matrices],
) -> int:
    """Return the most bytes that making one of them takes."""
    found = 0
    for one in made:
        own = matrices[one.root]
        expert, inputs = 12 * own.neurons * own.hidden, 16 * TOKENS * (own.hidden + own.experts)
        if one.kind == "order":
            # Of two experts; then how alike their neurons are, and that in fp64 for the search.
            seen = ACTIVATIONS if merge.align in ("activations", "both") else 0
            found = max(found, 2 * expert + 12 * own.neurons**2 + seen)
        elif one.kind == "down":
            group = next(group for group in groups[one.root] if group.lead == one.lead)
            some = (2 + len(group.everyone)) * expert + 24 * TOKENS * own.neurons
            found = max(found, some + inputs + 24 * own.neurons**2)
        elif merge.router == "lse":
            found = max(found, inputs + 24 * own.hidden**2)
    return found


def order_name(root: str, member: int, held: Held | None = None) -> str:
    """Return the name of the order of an expert's neurons; of a stacked tensor it has its own."""
    return f"{root}.order.{member}" if held is None else f"{held.name}.order.{member}"


def router_name(name: str) -> str:
    """Return the name of the rows that a router's tensor has afterwards."""
    return f"{name}.merged"


def refit_name(root: str, lead: int) -> str:
    """Return the name of a group's fitted down projection."""
    return f"{root}.down.{lead}"
