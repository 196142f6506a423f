"""`--set a.b=c` on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from mergekit_lite.errors import RecipeError, nearest
from mergekit_lite.recipe.marks import Mark, Node, Problems, kind_of
from mergekit_lite.recipe.text import parse

_SEGMENT = re.compile(r'"([^"]+)"|([^."]+)')


def apply_overrides(root: Node, overrides: Sequence[str], problems: Problems) -> Node:
    """Set values by dotted path (`output.dtype=float16`, `steps.0.ties.density=0.3`).

    The value is read as YAML. Entries of a list go by their index from 0; an index equal to the
    list's length appends. A segment that holds dots is quoted. Later overrides win.
    """
    for number, text in enumerate(overrides):
        name = f"--set {text}"
        # Overrides stand after every file in a report.
        mark = Mark(order=1 << 20, line=number, text=name)
        path, equals, value = text.partition("=")
        segments = _split(path.strip())
        if not equals or not segments:
            problems.add("an override is `path=value`", mark, "for example --set seed=7")
            continue
        try:
            node = _marked(parse(value, name), mark) if value.strip() else Node(None, mark, mark)
        except RecipeError as error:
            for problem in error.problems:
                problems.add(problem.what, mark, "the part after `=` is read as YAML")
            continue
        root = _put(root, segments, (), node, problems)
    return root


def _split(path: str) -> tuple[str, ...]:
    rest, segments = path, []
    while rest:
        match = _SEGMENT.match(rest)
        if not match or ((rest := rest[match.end() :]) and not rest.startswith(".")):
            return ()
        segments.append(match[1] or match[2])
        if rest == ".":
            return ()
        rest = rest[1:]
    return tuple(segments)


def _marked(node: Node, mark: Mark) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {key: _marked(item, mark) for key, item in value.items()}
    elif isinstance(value, list):
        value = [_marked(item, mark) for item in value]
    return Node(value, mark, mark, node.quoted)


def _put(
    node: Node, path: tuple[str, ...], done: tuple[str, ...], leaf: Node, problems: Problems
) -> Node:
    if not path:
        return leaf
    head, rest = path[0], path[1:]
    value = _opened(node, done, head)
    here = (*done, head)
    if isinstance(value, list):
        return node.with_value(_put_entry(value, path, done, leaf, problems))
    if not isinstance(value, dict):
        what = f"`{'.'.join(done)}` is {kind_of(value)}: nothing can be set inside it"
        problems.add(what, leaf.mark)
        return node
    under = value.get(head, Node({} if rest else None, leaf.mark, leaf.mark))
    child = _put(under, rest, here, leaf, problems)
    key = value[head].key if head in value else leaf.mark
    return node.with_value({**value, head: replace(child, key=key)})


def _put_entry(
    value: list[Node],
    path: tuple[str, ...],
    done: tuple[str, ...],
    leaf: Node,
    problems: Problems,
) -> list[Node]:
    head, rest = path[0], path[1:]
    index = int(head) if head.isdecimal() else -1
    if not 0 <= index <= len(value) or (index == len(value) and rest):
        owner = ".".join(done)
        hint = f"`{owner}` has {len(value)} entries, counted from 0"
        names = [key for node in value for key in node.entries()]
        problems.add(f"`{head}` is no entry of `{owner}`", leaf.mark, nearest(head, names) or hint)
        return value
    if index == len(value):
        return [*value, leaf]
    changed = list(value)
    changed[index] = _put(value[index], rest, (*done, head), leaf, problems)
    return changed


def _opened(node: Node, done: tuple[str, ...], head: str) -> object:
    """Give the short forms (`math: ./math`, `- ties`) their long form, to set a key in them."""
    value = node.value
    if value is None:
        return {}
    if isinstance(value, str) and len(done) == 2 and done[0] == "experts":
        return {"model": node}
    if isinstance(value, str) and value == head and "steps" in done:
        return {value: node.with_value({})}
    return value
