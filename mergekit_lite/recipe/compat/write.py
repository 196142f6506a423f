"""A translated recipe as the text of one of ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mergekit_lite.recipe.compat.comments import placed
from mergekit_lite.recipe.marks import Node

_ORDER = ("base", "experts", "slices", "steps", "rules", "stages", "tokenizer", "output")
_BLOCKS = ("experts", "slices", "steps", "rules", "stages")


def recipe_text(root: Node, title: str, comments: Mapping[int, str]) -> str:
    """Return a recipe as YAML text, one entry a line.

    Args:
        root: a recipe's tree; its nodes know the lines of the text that it comes from.
        title: name of that text.
        comments: comments of that text by line.
    """
    keys = [key for key in _ORDER if key in root.entries()]
    keys += [key for key in root.entries() if key not in keys]
    parts = [part for key in keys for part in _parts(key, root.entries()[key])]
    head = {line: words for line, words in comments.items() if line < root.mark.line}
    rest = {line: words for line, words in comments.items() if line not in head}
    notes = placed(rest, {name: _lines(node, root) for name, node, _ in parts})
    text = [f"# From {title}, a recipe of mergekit.", *(f"# {words}" for words in head.values())]
    text += [] if root.get("schema_version") else ["schema_version: 1"]
    opened = ""
    for name, node, indent in parts:
        key = name.partition(" ")[0]
        if indent and key != opened:
            text.append(f"{key}:")
            opened = key
        text += [f"{indent}# {words}" for words in notes.get(name, ())]
        text.append(indent + _entry(name, node.plain()))
    return "\n".join(text) + "\n"


def _parts(key: str, node: Node) -> list[tuple[str, Node, str]]:
    """Return what stands on lines of its own: a name, its value, and how far it is indented."""
    if key not in _BLOCKS or not node.value:
        return [(key, node, "")]
    if isinstance(node.value, dict):
        return [(f"{key} {name}", entry, "  ") for name, entry in node.value.items()]
    return [(f"{key} -{index}", entry, "  ") for index, entry in enumerate(node.items())]


def _entry(name: str, value: Any) -> str:
    word = name.rpartition(" ")[2]
    if " -" not in name:
        return f"{flow(word)}: {flow(value)}"
    if isinstance(value, dict) and len(value) == 1:
        ((word, value),) = value.items()
        return f"- {flow(word)}: {flow(value)}"
    return f"- {flow(value)}"


def flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    text: str = yaml.safe_dump(
        value, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("...\n").strip()


def _lines(node: Node, root: Node) -> list[int]:
    """Return the lines of the old text that a part comes from; the text as a whole is none."""
    marks = {entry.mark for _, entry in node.walk() if entry.mark != root.mark}
    return sorted({mark.line for mark in marks if mark.line > 0})


def respelt(root: Node, old: Path, new: Path) -> Node:
    """Return a recipe whose models are spelt from another folder, where they are local."""
    if old.resolve() == new.resolve():
        return root

    def moved(node: Node) -> Node:
        text = node.value
        if not isinstance(text, str) or text.startswith("@"):
            return node
        path = Path(os.path.expanduser(text))
        if path.is_absolute() or not (old / path).exists():
            return node
        spelt = os.path.relpath(old / path, new)
        return node.with_value(spelt if spelt.startswith("..") else f"./{spelt}")

    def walk(node: Node) -> Node:
        if isinstance(node.value, list):
            return node.with_value([walk(item) for item in node.value])
        names = ("base", "model", "lora", "store")
        entries = {
            key: moved(entry) if key in names and isinstance(entry.value, str) else walk(entry)
            for key, entry in node.entries().items()
        }
        return node.with_value(entries) if entries else node

    return walk(root)
