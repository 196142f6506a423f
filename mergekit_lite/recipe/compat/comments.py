"""Comments of a YAML text, which its parser drops."""

from __future__ import annotations

import re
from collections.abc import Iterable

import yaml

_COMMENT = re.compile(r"(?:^|\s)#(.*)")


def comments_of(text: str) -> dict[int, str]:
    """Return the comments of a YAML text by line, counted from 1, without their `#`."""
    inside = _scalars(text)
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        for match in _COMMENT.finditer(line):
            place = (number, match.start(1) - 1)
            if not any(begin <= place < end for begin, end in inside):
                if words := match[1].strip():
                    found[number] = words
                break
    return found


def _scalars(text: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where quoted and block scalars begin and end, in which `#` begins no comment."""
    found = []
    for token in yaml.scan(text, yaml.SafeLoader):
        if isinstance(token, yaml.ScalarToken) and not token.plain:
            begin, end = token.start_mark, token.end_mark
            found.append(((begin.line + 1, begin.column), (end.line + 1, end.column)))
    return found


def placed(comments: dict[int, str], lines: dict[str, Iterable[int]]) -> dict[str, list[str]]:
    """Return which comments belong to which part of a text that is written anew.

    Args:
        comments: by line of the old text.
        lines: for each part of the new text, the lines of the old one that it comes from.
    """
    owner = {line: part for part, own in lines.items() for line in own}
    result: dict[str, list[str]] = {}
    for line, words in sorted(comments.items()):
        after = [known for known in sorted(owner) if known >= line]
        part = owner[after[0]] if after else next(reversed(lines), "")
        result.setdefault(part, []).append(words)
    return result
