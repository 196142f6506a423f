"""Makes what a merged model needs that no input has, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.errors import DataError
from mergekit_lite.moe.fewer.statistics import Numbers, layer_statistics
from mergekit_lite.moe.merge.align import (
    alike_by_activations,
    alike_by_both,
    alike_by_weights,
    order,
    stored_order,
)
from mergekit_lite.moe.merge.collapse import frequency_rows, lse_rows
from mergekit_lite.moe.merge.groups import Group
from mergekit_lite.moe.merge.made import Made
from mergekit_lite.moe.merge.matrices import Matrices
from mergekit_lite.moe.merge.products import one_thread
from mergekit_lite.moe.merge.refit import refitted
from mergekit_lite.moe.prune.scores import tokens

if TYPE_CHECKING:
    Floats = NDArray[np.float32]
    Neurons = NDArray[np.int64]
    Expert = Mapping[str, Floats]


class Base(Protocol):
    """Reads the routed base; handed over by whoever runs the plan."""

    def expert(self, matrices: Matrices, expert: int) -> Expert:
        """Return `gate` and `up` (neurons, d) and `down` (d, neurons) of an expert in fp32."""

    def tensor(self, name: str) -> Floats:
        """Return a tensor of the base in fp32."""


class Maker:
    """Makes orders of neurons, rows of routers and fitted matrices.

    Args:
        facts: `plan.moe["merged"]`.
        folder: from which statistics are named.
        base: the routed model.
    """

    def __init__(self, facts: Mapping[str, Any], folder: Path, base: Base) -> None:
        self._merge, self._base = facts["merge"], base
        stats = self._merge.get("stats")
        self._stats = folder / Path(stats).expanduser() if stats else None
        self._modules = facts["modules"]
        self._matrices = {r: Matrices.from_plain(own) for r, own in facts["matrices"].items()}
        self._made = [Made.from_plain(made) for made in facts["made"]]
        self._align = self._merge.get("align", "weights")
        self._leading: tuple[str, int, Expert] | None = None
        self._ordered: tuple[str, int, Neurons] | None = None

    @property
    def made(self) -> Sequence[Made]:
        """All that is to be made, in order."""
        return self._made

    def values(self) -> Iterator[tuple[Made, Floats]]:
        """Yield everything with its entries."""
        makers = {"order": self._order, "router": self._router, "down": self._down}
        with one_thread():
            for made in self._made:
                value = makers[made.kind](made)
                if value.shape != made.shape or not np.isfinite(value).all():
                    what = "is not finite" if value.shape == made.shape else "has another shape"
                    raise DataError(
                        f"the {made.kind} that was made for merged experts {what}",
                        made.name,
                        "look at the statistics, or measure again",
                    )
                yield made, np.ascontiguousarray(value, np.float32)

    def _order(self, made: Made) -> Floats:
        matrices = self._matrices[made.root]
        found = self._neurons(made.root, made.lead, made.member)
        return stored_order(found, matrices.of(made.tensor), made.member)

    def _neurons(self, root: str, lead: int, member: int) -> Neurons:
        """Return how the neurons of an expert stand in the order of the leading one's."""
        if self._ordered is not None and self._ordered[:2] == (root, member):
            return self._ordered[2]
        matrices = self._matrices[root]
        if self._align == "activations":
            alike = self._by_activations(root, lead, member)
        else:
            first, other = self._lead(root, lead), self._base.expert(matrices, member)
            if self._align == "both":
                alike = alike_by_both(first, other, self._by_activations(root, lead, member))
            else:
                alike = alike_by_weights(first, other)
        self._ordered = (root, member, order(alike))
        return self._ordered[2]

    def _lead(self, root: str, lead: int) -> Expert:
        if self._leading is None or self._leading[:2] != (root, lead):
            self._leading = (root, lead, self._base.expert(self._matrices[root], lead))
        return self._leading[2]

    def _by_activations(self, root: str, lead: int, member: int) -> Floats:
        found = self._measured(root, "merging", ("activations",))["activations"]
        return alike_by_activations(
            found[lead].astype(np.float32), found[member].astype(np.float32)
        )

    def _router(self, made: Made) -> Floats:
        rows = self._base.tensor(made.tensor).astype(np.float64)
        groups, experts = self._groups(made.root), self._matrices[made.root].experts
        rows = rows if rows.shape[0] == experts else rows.reshape(experts)
        if self._merge["router"] == "frequency":
            counts = None
            if not self._drafts(made.root) and self._stats is not None:
                counts = tokens(self._measured(made.root, "rates", ("count",)))
            found = frequency_rows(rows, groups, counts)
        else:
            inputs = self._measured(made.root, "merging", ("inputs",))["inputs"]
            found = lse_rows(rows, groups, inputs, self._penalty())
        return found.astype(np.float32).reshape(made.shape)

    def _drafts(self, root: str) -> bool:
        return bool(self._modules[root]["drafts"])

    def _down(self, made: Made) -> Floats:
        matrices = self._matrices[made.root]
        group = next(g for g in self._groups(made.root) if g.lead == made.lead)
        measured = self._measured(made.root, "merging", ("inputs", "given"))
        experts: dict[int, Expert] = {}
        total: dict[str, Floats] = {}
        for member, share in zip(group.members, group.shares(), strict=True):
            own = self._base.expert(matrices, member)
            if member != group.lead and self._align != "none":
                at = self._neurons(made.root, group.lead, member)
                own = {"gate": own["gate"][at], "up": own["up"][at], "down": own["down"][:, at]}
            experts[member] = own
            for part, matrix in own.items():
                weighted = np.float32(share) * matrix
                total[part] = weighted if part not in total else total[part] + weighted
        for expert in set(group.everyone) - set(group.members):
            experts[expert] = self._base.expert(matrices, expert)
        ordered = {expert: experts[expert] for expert in sorted(experts)}
        inputs, given = (measured[name].astype(np.float32) for name in ("inputs", "given"))
        return refitted(total, ordered, inputs, given, self._penalty())

    def _penalty(self) -> float:
        return float(self._merge.get("penalty", 0.01))

    def _groups(self, root: str) -> list[Group]:
        return [Group.from_plain(raw) for raw in self._modules[root]["groups"]]

    def _measured(self, root: str, kind: str, names: tuple[str, ...]) -> dict[str, Numbers]:
        layer = self._modules[root]["layer"] or 0
        if self._stats is None:
            raise DataError("no statistics are named", root, "write `stats: FOLDER`")
        found = layer_statistics(self._stats, kind, layer, names)
        for name in names:
            if name not in found:
                raise DataError(
                    f"`{self._merge['stats']}` says nothing of `{name}` in layer {layer}",
                    hint="measure again, or write `align: weights`, `router: centroid` and no"
                    " `refit_down`",
                )
        return found
