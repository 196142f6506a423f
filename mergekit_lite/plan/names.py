"""Tensor names that differ between models by a prefix, and lists of names for messages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

_TRIED = 64


@dataclass(frozen=True)
class Prefix:
    """How an expert's names become the base's: `strip` is taken off, `add` is put before.

    Attributes:
        strip: what the expert's names begin with and the base's do not.
        add: what the base's names begin with and the expert's do not.
        matched: how many base names that explains.
        example: one pair of names, the expert's and the base's.
    """

    strip: str
    add: str
    matched: int
    example: tuple[str, str]

    def maps(self, name: str, wanted: Collection[str]) -> bool:
        """Return whether it turns an expert's name into one that is wanted."""
        return name.startswith(self.strip) and self.add + name[len(self.strip) :] in wanted

    @property
    def as_rename(self) -> str:
        """The same as an entry of `rename`."""
        return f"{self.strip}*: {self.add}*"

    def __str__(self) -> str:
        if not self.strip:
            return f"its names lack the prefix `{self.add}`"
        if not self.add:
            return f"its names have the prefix `{self.strip}`, the base's have not"
        return f"its names begin with `{self.strip}` where the base's begin with `{self.add}`"


def prefixes_between(missing: Collection[str], extra: Collection[str]) -> list[Prefix]:
    """Return the changes of prefix that turn names of `extra` into names of `missing`, best first.

    Args:
        missing: base names that the expert lacks.
        extra: the expert's names that the base lacks.
    """
    candidates: dict[tuple[str, str], tuple[str, str]] = {}
    by_end: dict[str, list[str]] = {}
    for name in extra:
        by_end.setdefault(_tail(name), []).append(name)
    for wanted in _some(missing):
        for name in by_end.get(_tail(wanted), [])[:_TRIED]:
            strip, add = _prefixes(name, wanted)
            # Another layer is not another prefix.
            if _numbers(strip) == _numbers(add):
                candidates.setdefault((strip, add), (name, wanted))
    wanted_names = set(missing)
    found = [
        Prefix(strip, add, sum(add + n[len(strip) :] in wanted_names
                               for n in extra if n.startswith(strip)), example)
        for (strip, add), example in candidates.items()
    ]  # fmt: skip
    return sorted(found, key=lambda prefix: -prefix.matched)


def _some(names: Collection[str]) -> list[str]:
    """Return names from all over a list, which may have a tower's names before the model's."""
    return list(names)[:: max(1, len(names) // _TRIED)]


def _numbers(prefix: str) -> list[str]:
    return [part for part in prefix.split(".") if part.isdecimal()]


def _tail(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _prefixes(name: str, wanted: str) -> tuple[str, str]:
    """Return what is left of both names before their longest common run of last parts."""
    left, right = name.split("."), wanted.split(".")
    while left and right and left[-1] == right[-1]:
        left.pop()
        right.pop()
    return "".join(f"{part}." for part in left), "".join(f"{part}." for part in right)


def few(names: Sequence[str], shown: int = 5) -> str:
    """Return the first names of a list that may have thousands."""
    listed = ", ".join(f"`{name}`" for name in names[:shown])
    rest = len(names) - shown
    return f"{listed} and {rest} more" if rest > 0 else listed


def plural(count: int, noun: str) -> str:
    """Return `1 tensor`, `2 tensors`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
