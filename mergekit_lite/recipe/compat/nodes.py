"""Making nodes of our own out of those of another tool's recipe, which keep their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_lite.recipe.marks import Mark, Node


def scalar(value: Any, mark: Mark) -> Node:
    """Return a value that stands for something at `mark`."""
    return Node(value, mark, mark)


def mapping(entries: Mapping[str, Node], mark: Mark) -> Node:
    """Return a mapping that stands for something at `mark`."""
    return Node(dict(entries), mark, mark)


def listed(entries: Sequence[Node], mark: Mark) -> Node:
    """Return a list that stands for something at `mark`."""
    return Node(list(entries), mark, mark)


def same(nodes: Sequence[Node]) -> bool:
    """Return whether all nodes hold the same plain value, of the same type."""
    values = [node.plain() for node in nodes]
    return all(value == values[0] and type(value) is type(values[0]) for value in values)
