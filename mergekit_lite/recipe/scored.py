"""What `expect` and `search` of a recipe both have: files of data, and scores on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.marks import Node, Problems, kind_of, show
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.schema import SCORES

if TYPE_CHECKING:
    from pydantic import BaseModel

    from mergekit_lite.recipe.shape import Shaper

BLANK = {"data": "", "score": "recovery"}
"""Stands for an entry that cannot be read."""


@dataclass(frozen=True)
class Scored:
    """An entry that names data and a score.

    Attributes:
        entries: its keys that are not null.
        data: the name of the data.
        score: one of `SCORES`; empty where it is none.
    """

    entries: Mapping[str, Node]
    data: str
    score: str

    def plain(self, node: Node) -> dict[str, Any]:
        """Return plain data for the schema."""
        found = {key: value.plain() for key, value in self.entries.items()}
        score = {} if self.score else {"score": BLANK["score"]}
        return {**found, "data": self.data, **score, "where": str(node.mark)}


def files_of(node: Node, problems: Problems, hint: str) -> dict[str, str]:
    """Return the files of a mapping of names to files."""
    found = {}
    for name, file in node.entries().items():
        if isinstance(file.value, str) and file.value:
            found[name] = file.value
        else:
            what = f"the data `{name}` must be a file's name, not {kind_of(file.value)}"
            problems.add(what, file.mark, hint)
    return found


def scored(
    shaper: Shaper,
    node: Node,
    kind: type[BaseModel],
    place: str,
    data: Mapping[str, str],
    hint: str,
) -> Scored | None:
    """Return what an entry of a list names; None where it is no mapping.

    Args:
        shaper: of the recipe.
        node: the entry.
        kind: what it is read as.
        place: of the list, such as `expect.bounds`.
        data: that there are.
        hint: an example of an entry.
    """
    problems, what = shaper.problems, kind.__name__.lower()
    if not isinstance(node.value, dict):
        text = f"the {what} must be a mapping, not {kind_of(node.value)}"
        problems.add(text, node.mark, hint)
        return None
    entries = shaper.known(node, keys_of(kind), place)
    entries = {key: value for key, value in entries.items() if value.value is not None}
    named = {key: show(entries[key].plain()) for key in ("data", "score") if key in entries}
    for key in ("data", "score"):
        if key not in named:
            problems.add(f"the {what} has no `{key}`", node.mark, hint)
    name, score, section = named.get("data", ""), named.get("score", ""), place.split(".")[0]
    if "data" in entries and name not in data:
        problems.add(f"`{section}.data` has no `{name}`", entries["data"].mark, nearest(name, data))
    if "score" in entries and score not in SCORES:
        known = nearest(score, SCORES) or f"there are {', '.join(SCORES)}"
        problems.add(f"no score is called `{score}`", entries["score"].mark, known)
    return Scored(entries, name, score if score in SCORES else "")
