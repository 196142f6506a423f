"""Experts that become one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Group:
    """Experts of one layer that become one.

    Attributes:
        lead: the expert whose place, and whose order of neurons, the result has.
        members: those that its matrices are the mean of, by number.
        weights: how much each of them counts.
        everyone: all experts of the group, those that do not count among them.
    """

    lead: int
    members: tuple[int, ...]
    weights: tuple[float, ...]
    everyone: tuple[int, ...]

    @property
    def moved(self) -> bool:
        """Whether the result is the bytes of one expert."""
        return len(self.members) == 1

    def shares(self) -> tuple[float, ...]:
        """Return the weights as parts of their sum."""
        total = sum(self.weights)
        return tuple(weight / total for weight in self.weights)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {
            "lead": self.lead,
            "experts": list(self.everyone),
            "mean_of": list(self.members),
            "weights": list(self.shares()),
        }

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> Group:
        """Rebuild a group from `plain`."""
        lists = (tuple(raw[key]) for key in ("mean_of", "weights", "experts"))
        return cls(raw["lead"], *lists)


def group_of(experts: Sequence[int], weights: Sequence[float]) -> Group:
    """Return the group of some experts, of which the first leads.

    Args:
        experts: by number.
        weights: of all experts of the layer. Those of weight 0 count for nothing; where all of the
            group are 0, each counts the same.
    """
    everyone = tuple(sorted(experts))
    counted = tuple(expert for expert in everyone if weights[expert] > 0)
    if not counted:
        return Group(experts[0], everyone, (1.0,) * len(everyone), everyone)
    return Group(experts[0], counted, tuple(float(weights[e]) for e in counted), everyone)


def in_order(groups: Iterable[Group]) -> tuple[Group, ...]:
    """Return groups in the order of their leading experts, which is that of the result."""
    return tuple(sorted(groups, key=lambda group: group.lead))
