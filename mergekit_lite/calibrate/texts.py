"""Texts to measure a model on, read from files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_lite.errors import DataError, Problem, SourceError

SUFFIXES = (".txt", ".jsonl")


@dataclass(frozen=True)
class Text:
    """One text, or one conversation.

    Attributes:
        text: running text, where it is no conversation.
        domain: what it is about; statistics are kept apart by it.
        where: file and line, for messages.
        messages: turns of a conversation (`role`, `content`), to go through the chat template.
        is_running: a file of prose, which may be cut into as many pieces as it takes.
    """

    text: str
    domain: str
    where: str
    messages: tuple[Mapping[str, Any], ...] = ()
    is_running: bool = False


def read_texts(files: Iterable[Path | tuple[str, Path]]) -> list[Text]:
    """Return the texts of all files, in order.

    A `.txt` file is one running text. A line of a `.jsonl` file has `text` or `messages`, and may
    have `domain`. Without it the domain is that of the pair, or the file's name up to its first
    dot.

    Args:
        files: paths, or pairs of a domain and a path.

    Raises:
        SourceError: a file is not there.
        DataError: a file is no UTF-8, holds nothing, or a line of it is not as described; all
            files' problems are told.
    """
    found: list[Text] = []
    problems: list[Problem] = []
    for entry in files:
        domain, path = entry if isinstance(entry, tuple) else (entry.name.split(".")[0], entry)
        try:
            texts = list(_of_file(path, domain))
        except DataError as error:
            problems += error.problems
            continue
        if not texts:
            hint = "give a file with text in it"
            problems.append(Problem("the file holds no text", str(path), hint))
        found += texts
    if problems:
        raise DataError(problems)
    return found


def read_utf8(path: Path) -> str:
    """Return the text of a file, without a byte order mark.

    Raises:
        SourceError: it is not there.
        DataError: it is not UTF-8; tells where.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SourceError(
            f"cannot read `{path}`: {error.strerror}", hint="check the path of the data"
        ) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 at byte {error.start:,}",
            str(path),
            "convert it, for example with `iconv -f latin1 -t utf-8`",
        ) from error


def prompts(domain: str, lines: Sequence[str]) -> list[Text]:
    """Return prompts that a recipe lists, as texts of one domain."""
    return [Text(line, domain, f"prompt {n} of `{domain}`") for n, line in enumerate(lines, 1)]


def _of_file(path: Path, domain: str) -> Iterator[Text]:
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"`{path.suffix or path.name}` files are not read",
            str(path),
            "give a .txt file, or .jsonl with a `text` or `messages` in each line",
        )
    whole = read_utf8(path)
    if path.suffix == ".txt":
        if whole.strip():
            yield Text(whole, domain, str(path), is_running=True)
        return
    yield from _of_lines(whole, path, domain)


def _of_lines(whole: str, path: Path, domain: str) -> Iterator[Text]:
    problems = []
    # Only line feeds end a line of JSON; text may hold other separators.
    for number, line in enumerate(whole.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        found = _of_line(line, domain, where)
        if isinstance(found, Problem):
            problems.append(found)
        elif found is not None:
            yield found
    if problems:
        raise DataError(problems[:10])


def _of_line(line: str, domain: str, where: str) -> Text | Problem | None:
    hint = 'write {"text": "..."} or {"messages": [{"role": "user", "content": "..."}]}'
    try:
        value = json.loads(line)
    except ValueError as error:
        return Problem(f"not JSON: {error}", where, hint)
    if not isinstance(value, dict):
        return Problem("not a JSON object", where, hint)
    named = value.get("domain", domain)
    if not isinstance(named, str) or not named:
        return Problem("`domain` is no text", where, 'write "domain": "NAME" or leave it out')
    text, messages = value.get("text"), value.get("messages")
    if isinstance(text, str):
        return Text(text, named, where) if text.strip() else None
    if isinstance(messages, list) and messages and all(map(_is_turn, messages)):
        return Text("", named, where, tuple(messages))
    return Problem("neither `text` nor `messages`", where, hint)


def _is_turn(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(k), str) for k in ("role", "content")
    )


def data_files(words: Iterable[str]) -> list[Path | tuple[str, Path]]:
    """Return the files that a command line names, each `FILE` or `DOMAIN=FILE`."""
    found: list[Path | tuple[str, Path]] = []
    for word in words:
        domain, equals, file = word.partition("=")
        is_pair = bool(equals) and not Path(word).exists()
        found.append((domain, Path(file)) if is_pair else Path(word))
    return found
