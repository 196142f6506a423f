"""Recipe text as a tree in which every key and every value knows its line and column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from mergekit_lite.errors import Problem, RecipeError

Path = tuple[str | int, ...]


@dataclass(frozen=True, order=True)
class Mark:
    """A place in a recipe: `recipe.yaml:14:9`, or a dotted path where there is no text."""

    order: int = 0  # of the file among those a recipe is composed of
    line: int = 0
    column: int = 0
    text: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Node:
    """A value with its place.

    Attributes:
        value: a scalar (str, int, float, bool, None), a dict of nodes by key or a list of nodes.
        mark: where the value stands.
        key: where its key stands; the value's own place for list entries.
        quoted: the value is text that was written in quotes.
    """

    value: Any
    mark: Mark
    key: Mark
    quoted: bool = False

    def plain(self) -> Any:
        """Return the value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def with_value(self, value: Any) -> Node:
        return replace(self, value=value)

    def get(self, key: str) -> Node | None:
        """Return the node under a key, None where there is none or this is no mapping."""
        return self.value.get(key) if isinstance(self.value, dict) else None

    def entries(self) -> dict[str, Node]:
        """Return the nodes of a mapping, nothing for anything else."""
        return self.value if isinstance(self.value, dict) else {}

    def items(self) -> list[Node]:
        """Return the nodes of a list, nothing for anything else."""
        return self.value if isinstance(self.value, list) else []

    def walk(self, path: Path = ()) -> Iterator[tuple[Path, Node]]:
        """Yield every node under this one with its path, itself first."""
        yield path, self
        pairs: Sequence[tuple[str | int, Node]] = list(self.entries().items()) or list(
            enumerate(self.items())
        )
        for key, node in pairs:
            yield from node.walk((*path, key))


def kind_of(value: Any) -> str:
    """Return the name a person would give to a value's type."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true/false"
    names = {int: "a number", float: "a number", str: "text", dict: "a mapping", list: "a list"}
    return next((text for kind, text in names.items() if isinstance(value, kind)), "a value")


def show(value: Any) -> str:
    """Return a value as a message quotes it, cut to one short line."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {show(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(map(show, value)) + "]"
    else:
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def from_plain(value: Any, name: str) -> Node:
    """Turn plain Python data into nodes whose place is their dotted path under `name`.

    Raises:
        RecipeError: a value or a key has a type that a recipe cannot hold, or holds itself.
    """
    lines = iter(range(1, 1 << 62))
    problems: list[Problem] = []

    def build(value: Any, path: str, inside: tuple[int, ...]) -> Node:
        mark = Mark(line=next(lines), text=f"{name}:{path}" if path else name)
        if id(value) in inside:
            problems.append(Problem("the value contains itself", mark.text))
            return Node(None, mark, mark)
        within = (*inside, id(value))
        if isinstance(value, Mapping):
            wrong = [key for key in value if not isinstance(key, str)]
            problems.extend(
                Problem(f"the key {key!r} is not text", mark.text, f"write '{key}'")
                for key in wrong
            )
            step = f"{path}." if path else ""
            entries = {str(k): build(v, f"{step}{k}", within) for k, v in value.items()}
            return Node(entries, mark, mark)
        if isinstance(value, list | tuple):
            step = f"{path}." if path else ""
            listed = [build(v, f"{step}{i}", within) for i, v in enumerate(value)]
            return Node(listed, mark, mark)
        if isinstance(value, PurePath):
            value = str(value)
        if value is not None and not isinstance(value, str | bool | int | float):
            what = f"a {type(value).__name__} cannot stand in a recipe"
            problems.append(
                Problem(what, mark.text, "use text, numbers, true/false, lists and mappings")
            )
            value = None
        return Node(value, mark, mark)

    root = build(value, "", ())
    if problems:
        raise RecipeError(problems)
    return root


class Problems:
    """Collects what is wrong with a recipe and reports it all at once, in reading order."""

    def __init__(self) -> None:
        self._found: list[tuple[Mark, Problem]] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, what: str, mark: Mark, hint: str = "") -> None:
        """Note one problem; a repetition of the same words at the same place is dropped."""
        entry = (mark, Problem(what, str(mark), hint))
        if entry not in self._found:
            self._found.append(entry)

    def raise_if_any(self) -> None:
        """Raise a `RecipeError` with every problem, sorted by file, line and column."""
        if self._found:
            ordered = sorted(self._found, key=lambda entry: entry[0])
            raise RecipeError([problem for _, problem in ordered])
