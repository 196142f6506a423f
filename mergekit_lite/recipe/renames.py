"""The `rename:` of an expert: which of its tensors stand for which of the base's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

REGEX = "regex:"
"""Begins a pattern that is a regular expression; others are shell-style."""

_WILD = re.compile(r"[*?]")


def renamer(pattern: str, replacement: str) -> Callable[[str], str | None]:
    """Return a function from a name to its new name, or None where the pattern does not fit.

    Args:
        pattern: a whole name in which `*` and `?` stand for any text and any character; or
            `regex:` and a regular expression, of which every match in the name is replaced.
        replacement: in which each `*` and `?` is what the pattern's wildcards stood for, in order;
            or, for a regular expression, a template with `\\1` and so on.

    Raises:
        ValueError: the pattern or the replacement cannot be read; the message says why.
    """
    if pattern.startswith(REGEX):
        return _by_regex(pattern.removeprefix(REGEX), replacement)
    wild = len(_WILD.findall(pattern))
    if len(_WILD.findall(replacement)) > wild:
        raise ValueError(f"`{replacement}` has more wildcards than `{pattern}`")
    parts = (f"({'.*' if p == '*' else '.'})" if p in ("*", "?") else re.escape(p)
             for p in re.split(r"([*?])", pattern))  # fmt: skip
    shape = re.compile("".join(parts), re.DOTALL)

    def rename(name: str) -> str | None:
        found = shape.fullmatch(name)
        if found is None:
            return None
        groups = iter(found.groups())
        return _WILD.sub(lambda _: next(groups), replacement)

    return rename


def _by_regex(pattern: str, replacement: str) -> Callable[[str], str | None]:
    try:
        shape = re.compile(pattern)
        # Groups that are not there are found now, not at the first name that fits.
        shape.sub(replacement, "")
    except (re.error, IndexError) as error:
        raise ValueError(f"`{pattern}` to `{replacement}`: {error}") from None

    def rename(name: str) -> str | None:
        made, count = shape.subn(replacement, name)
        return made if count else None

    return rename


class Renaming:
    """Applies the first rule that fits a name.

    Args:
        rules: pattern -> replacement, in order; see `renamer`.

    Attributes:
        used: the patterns that have fitted a name.
    """

    def __init__(self, rules: Mapping[str, str]) -> None:
        self._rules = [(pattern, renamer(pattern, to)) for pattern, to in rules.items()]
        self.used: set[str] = set()

    def __call__(self, name: str) -> str:
        """Return the new name; the same one where no rule fits."""
        for pattern, rename in self._rules:
            made = rename(name)
            if made is not None:
                self.used.add(pattern)
                return made
        return name


def in_scope(name: str, scope: Iterable[str]) -> bool:
    """Return whether a name is in a scope: fits a pattern of it, or is below a module it names."""
    return any(fnmatchcase(name, part) or name.startswith(f"{part}.") for part in scope)
