"""YAML text -> nodes, with the rules of YAML 1.2 for plain words.

PyYAML follows YAML 1.1, in which `1e-3` is text, `no` is false, `010` is eight and `4:8` is 248.
Editors and people follow 1.2, so the plain scalars are resolved here.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, ScalarNode, SequenceNode

from mergekit_lite.errors import RecipeError
from mergekit_lite.recipe.marks import Mark, Node, Problems

_TAG = "tag:yaml.org,2002:"
_SHAPE = "a recipe is a mapping of keys such as `base`, `experts` and `steps`"
_LIMIT = 50_000  # values in one file after aliases are expanded; a bomb has more
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalar types of YAML 1.2's core schema and merge keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own attribute)


for _name, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    ("float", _NUMBER.pattern + r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), list(_first))


def number(value: Any) -> float | int | None:
    """Return a number, also where text such as `1e-3` spells one; None for anything else.

    Whole numbers beyond the range of floats come back as infinities.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        if not _NUMBER.fullmatch(text):
            return None
        value = int(text) if text.lstrip("+-").isdecimal() and len(text) < 300 else float(text)
    if not isinstance(value, int | float):
        return None
    try:
        float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    return value


def parse(text: str, name: str, order: int = 0) -> Node:
    """Parse the YAML text of one recipe file.

    Raises:
        RecipeError: broken YAML, several documents, repeated keys, foreign tags.
    """
    return only(parse_all(text, name, order), name)


def only(documents: list[Node], name: str) -> Node:
    """Return the one document of a file.

    Raises:
        RecipeError: there are several, or none.
    """
    if len(documents) > 1:
        hint = "a recipe is one document: remove the `---` or put each recipe in its own file"
        what = f"{len(documents)} YAML documents in one file"
        raise RecipeError(what, f"{name}:{documents[1].mark.line}", hint)
    if not documents:
        raise RecipeError("the recipe is empty", name, "it needs at least `base` and `steps`")
    return documents[0]


def parse_all(text: str, name: str, order: int = 0) -> list[Node]:
    """Parse every document of a YAML text.

    Raises:
        RecipeError: broken YAML, repeated keys, foreign tags.
    """
    try:
        documents = list(yaml.compose_all(text, _Loader))
    except yaml.MarkedYAMLError as error:
        raise _syntax(error, text, name) from None
    except yaml.YAMLError as error:
        hint = "a recipe is a YAML text file: save it again as plain UTF-8 text"
        raise RecipeError(f"not a YAML text: {_one_line(error)}", name, hint) from None
    except RecursionError:
        raise RecipeError("nested too deep to be a recipe", name, _SHAPE) from None
    problems = Problems()
    builder = _Builder(name, order, problems)
    try:
        roots = [builder.build(document, None, ()) for document in documents]
    except RecursionError:
        raise RecipeError("nested too deep to be a recipe", name, _SHAPE) from None
    problems.raise_if_any()
    return roots


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _syntax(error: yaml.MarkedYAMLError, text: str, name: str) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    what = " ".join(filter(None, (error.context, error.problem)))
    if "\t" in line[: len(line) - len(line.lstrip())] or "\\t" in (error.problem or ""):
        return RecipeError("a tab in the indentation", where, "YAML indents with spaces only")
    return RecipeError(f"not valid YAML: {what}", where, "check indentation, quotes and brackets")


class _Builder:
    def __init__(self, name: str, order: int, problems: Problems) -> None:
        self.name = name
        self.order = order
        self.problems = problems
        self.left = _LIMIT

    def mark(self, node: yaml.Node) -> Mark:
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        return Mark(self.order, line, column, f"{self.name}:{line}:{column}")

    def build(self, node: yaml.Node, key: Mark | None, inside: tuple[int, ...]) -> Node:
        mark = self.mark(node)
        self.left -= 1
        if self.left < 0:
            what = f"more than {_LIMIT:,} values after expanding the aliases"
            raise RecipeError(what, self.name, "a recipe is short: write it with fewer aliases")
        if id(node) in inside:
            self.problems.add(*_endless(mark))
            return Node(None, mark, key or mark)
        within = (*inside, id(node))
        value: Any
        if isinstance(node, MappingNode):
            value = self.mapping(node, within)
        elif isinstance(node, SequenceNode):
            value = [self.build(item, None, within) for item in node.value]
        else:
            value = self.scalar(node, mark)
        quoted = isinstance(node, ScalarNode) and node.style in ("'", '"')
        return Node(value, mark, key or mark, quoted)

    def mapping(self, node: MappingNode, inside: tuple[int, ...]) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            mark = self.mark(key)
            if key.tag == _TAG + "merge":
                merged = {**self.merged(value, inside), **merged}
            elif not isinstance(key, ScalarNode):
                self.problems.add("a key must be one word", mark)
            elif key.value in own:
                first = own[key.value].key
                what = f"`{key.value}` is given twice, first at {first}"
                self.problems.add(what, mark, "keep one of the two")
            else:
                own[key.value] = self.build(value, mark, inside)
        return {**{k: v for k, v in merged.items() if k not in own}, **own}

    def merged(self, node: yaml.Node, inside: tuple[int, ...]) -> dict[str, Node]:
        parts = node.value if isinstance(node, SequenceNode) else [node]
        result: dict[str, Node] = {}
        for part in parts:
            if not isinstance(part, MappingNode):
                self.problems.add("`<<` merges mappings only", self.mark(part))
            elif id(part) in inside:
                self.problems.add(*_endless(self.mark(part)))
            else:
                # The first of several wins, as YAML's merge key is defined.
                result = {**self.mapping(part, (*inside, id(part))), **result}
        return result

    def scalar(self, node: yaml.Node, mark: Mark) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return text
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        try:
            if kind == "int":
                prefixed = text[:2] in ("0x", "0o")
                return int(text, 0) if prefixed else int(text)
            if kind == "float":
                return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        except ValueError:
            self.problems.add(f"`{text}` is not a number", mark)
            return None
        tag = node.tag.replace(_TAG, "!!")
        self.problems.add(f"the YAML tag `{tag}` has no meaning in a recipe", mark, "remove it")
        return None


def _endless(mark: Mark) -> tuple[str, Mark, str]:
    return "the alias stands inside the value it names", mark, "write the value out"
