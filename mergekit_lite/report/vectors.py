"""What the task vectors of a recipe have in common: sums over each layer and role.

The sums of two parts of a model are the sum of theirs, so one sweep gives every table and chart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Group = tuple[int | None, str]
"""A layer (None outside the layers) and a role."""


@dataclass(frozen=True)
class Votes:
    """How a set of vectors meets, entry by entry.

    Attributes:
        both: int64, experts x experts: entries where both are not zero; an expert's own on the
            diagonal.
        shared: entries where at least two are not zero.
        conflicts: of those, where two of them differ in sign.
    """

    both: NDArray[np.int64]
    shared: int = 0
    conflicts: int = 0

    def __add__(self, other: Votes) -> Votes:
        return Votes(
            self.both + other.both,
            self.shared + other.shared,
            self.conflicts + other.conflicts,
        )

    @property
    def conflict_share(self) -> float | None:
        """Share of conflicts among the shared entries, 0 to 1; None where nothing is shared."""
        return self.conflicts / self.shared if self.shared else None

    def overlap(self, a: int, b: int) -> float | None:
        """Return the Jaccard index of two experts' entries, 0 to 1; None where both have none."""
        union = int(self.both[a, a] + self.both[b, b] - self.both[a, b])
        return int(self.both[a, b]) / union if union else None


@dataclass(frozen=True)
class Sums:
    """Sums over some tensors of the task vectors (expert minus base) of a recipe.

    Attributes:
        tensors, entries: how many there are.
        base: sum of the base's squares, in fp64.
        gram: fp64, experts x experts: inner products of the task vectors.
        raw: how the task vectors meet as they are.
        kept: how they meet after the recipe's transforms, such as a trim.
    """

    tensors: int
    entries: int
    base: float
    gram: NDArray[np.float64]
    raw: Votes
    kept: Votes

    @staticmethod
    def none(experts: int) -> Sums:
        """Return the sums over no tensor."""
        votes = Votes(np.zeros((experts, experts), np.int64))
        return Sums(0, 0, 0.0, np.zeros((experts, experts)), votes, votes)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.tensors + other.tensors,
            self.entries + other.entries,
            self.base + other.base,
            self.gram + other.gram,
            self.raw + other.raw,
            self.kept + other.kept,
        )

    def norm(self, expert: int) -> float:
        """Return the Euclidean norm of an expert's task vector."""
        return math.sqrt(float(self.gram[expert, expert]))

    def relative(self, expert: int) -> float | None:
        """Return that norm over the base's; None where the base is zero."""
        return self.norm(expert) / math.sqrt(self.base) if self.base > 0 else None

    def cosine(self, a: int, b: int) -> float | None:
        """Return the cosine of two task vectors; None where one of them is zero."""
        norms = self.norm(a) * self.norm(b)
        return float(self.gram[a, b]) / norms if norms > 0 else None


@dataclass(frozen=True)
class Touched:
    """What one decision of the recipe does.

    Attributes:
        where: its place in the recipe.
        what: in words.
        tensors, entries: how many tensors of the output it decides about, and their entries.
    """

    where: str
    what: str
    tensors: int
    entries: int


@dataclass(frozen=True)
class Vectors:
    """The task vectors of a recipe.

    Attributes:
        recipe: its name.
        base: the base, as the recipe writes it.
        experts: names in recipe order -> references.
        layers: number of layers.
        groups: sums of each layer and role, in order of depth.
        touched: what each rule, and the default chain, decides.
        trimmed: whether some chain changes the task vectors before it combines them.
    """

    recipe: str
    base: str
    experts: Mapping[str, str]
    layers: int
    groups: Mapping[Group, Sums]
    touched: Sequence[Touched]
    trimmed: bool
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.experts))

    @property
    def total(self) -> Sums:
        """Sums over the whole model."""
        return self._sum(self.groups.values())

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Every two experts, by number."""
        return list(combinations(range(len(self.names)), 2))

    def by_layer(self) -> dict[int, Sums]:
        """Return the sums of every layer."""
        found: dict[int, Sums] = {}
        for (layer, _), sums in self.groups.items():
            if layer is not None:
                found[layer] = found.get(layer, Sums.none(len(self.names))) + sums
        return dict(sorted(found.items()))

    def by_role(self) -> dict[str, Sums]:
        """Return the sums of every role."""
        found: dict[str, Sums] = {}
        for (_, role), sums in self.groups.items():
            found[role] = found.get(role, Sums.none(len(self.names))) + sums
        return dict(sorted(found.items()))

    def _sum(self, parts: Iterable[Sums]) -> Sums:
        return sum(parts, Sums.none(len(self.names)))

    def plain(self) -> dict[str, Any]:
        """Return all figures as JSON-able data."""
        return {
            "recipe": self.recipe,
            "base": self.base,
            "experts": dict(self.experts),
            "total": self._plain(self.total),
            "layers": {str(layer): self._plain(s) for layer, s in self.by_layer().items()},
            "roles": {role: self._plain(s) for role, s in self.by_role().items()},
            "rules": [
                {"where": t.where, "what": t.what, "tensors": t.tensors, "entries": t.entries}
                for t in self.touched
            ],
        }

    def _plain(self, sums: Sums) -> dict[str, Any]:
        def between(value: Any) -> dict[str, Any]:
            return {f"{self.names[a]}~{self.names[b]}": value(a, b) for a, b in self.pairs}

        return {
            "tensors": sums.tensors,
            "entries": sums.entries,
            "norm": {name: sums.norm(i) for i, name in enumerate(self.names)},
            "relative": {name: sums.relative(i) for i, name in enumerate(self.names)},
            "kept": {
                name: int(sums.kept.both[i, i]) / sums.entries if sums.entries else None
                for i, name in enumerate(self.names)
            },
            "cosine": between(sums.cosine),
            "overlap_of_kept": between(sums.kept.overlap),
            "sign_conflicts": sums.raw.conflict_share,
            "sign_conflicts_of_kept": sums.kept.conflict_share,
        }
