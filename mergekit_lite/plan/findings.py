"""Collects what is wrong or odd, so that all of it is reported at once and briefly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mergekit_lite.errors import Problem

_SHOWN = 5


@dataclass
class Group:
    """Tensors that all have the same thing wrong with them.

    Attributes:
        what: the sentence that introduces the tensors.
        where: place in the recipe.
        hint: what to do.
        tensors: names, each with what is odd about it.
    """

    what: str
    where: str
    hint: str
    tensors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.what}: {_listed(self.tensors)}"


def _listed(tensors: Sequence[str]) -> str:
    rest = len(tensors) - _SHOWN
    listed = ", ".join(tensors[:_SHOWN])
    return f"{listed} and {rest} more" if rest > 0 else listed


@dataclass
class Findings:
    """Problems and warnings of one plan, in the order they were found, none of them twice."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _problem_groups: dict[tuple[str, ...], Group] = field(default_factory=dict)
    _warning_groups: dict[tuple[str, ...], Group] = field(default_factory=dict)

    def problem(self, what: str, where: str = "", hint: str = "") -> None:
        """Note a problem; the same one is noted once."""
        found = Problem(what, where, hint)
        if found not in self.problems:
            self.problems.append(found)

    def warn(self, what: str, where: str = "") -> None:
        """Note a warning; the same one is noted once."""
        text = f"{where}: {what}" if where else what
        if text not in self.warnings:
            self.warnings.append(text)

    def problem_with(self, tensor: str, what: str, where: str = "", hint: str = "") -> None:
        """Note a problem of one tensor; all tensors with the same problem make one line."""
        self._add(self._problem_groups, tensor, Group(what, where, hint))

    def warn_of(self, tensor: str, what: str, where: str = "") -> None:
        """Note a warning about one tensor; all tensors with the same warning make one line."""
        self._add(self._warning_groups, tensor, Group(what, where, ""))

    @staticmethod
    def _add(groups: dict[tuple[str, ...], Group], tensor: str, group: Group) -> None:
        key = (group.what, group.where, group.hint)
        groups.setdefault(key, group).tensors.append(tensor)

    def all_problems(self) -> list[Problem]:
        """Return every problem, those of tensors as one line a kind."""
        grouped = [Problem(str(g), g.where, g.hint) for g in self._problem_groups.values()]
        return [*self.problems, *grouped]

    def all_warnings(self) -> tuple[str, ...]:
        """Return every warning, those of tensors as one line a kind."""
        grouped = (f"{g.where}: {g}" if g.where else str(g) for g in self._warning_groups.values())
        return (*self.warnings, *grouped)
