"""What models are scored on: texts that they predict, and questions with choices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from mergekit_lite.calibrate.texts import read_texts, read_utf8
from mergekit_lite.calibrate.windows import WINDOW_BYTES, windows
from mergekit_lite.errors import DataError, MergekitLiteError, Problem, RecipeError, nearest
from mergekit_lite.quality.labelled import VERSION, Labelled, Pairs, digest, labelled, pairs
from mergekit_lite.recipe.schema import DataKind
from mergekit_lite.sources.zoo import SCHEME

MOST = 16
"""Windows of a text that are scored, where nobody says how many."""


@dataclass(frozen=True)
class Texts:
    """Running text, in windows that each model predicts from their beginning.

    Attributes:
        name: of the data.
        windows: the pieces; scores are sums over them.
    """

    name: str
    windows: tuple[str, ...]

    @property
    def version(self) -> str:
        """What a score of it depends on, as a digest."""
        return digest(["texts", VERSION, *self.windows])

    @property
    def units(self) -> tuple[str, ...]:
        """What is scored one by one, as text."""
        return self.windows

    def part(self, chosen: slice) -> Self:
        """Return some of the units as data of their own."""
        return replace(self, windows=self.windows[chosen])

    def __len__(self) -> int:
        return len(self.windows)


@dataclass(frozen=True)
class Question:
    """A question with choices, of which one is right.

    Attributes:
        question: what comes before each choice.
        choices: two or more.
        answer: index of the right one.
    """

    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Questions:
    """Questions of multiple choice.

    Attributes:
        name: of the data.
        questions: in the order of the file.
    """

    name: str
    questions: tuple[Question, ...]

    @property
    def version(self) -> str:
        """What a score of it depends on, as a digest."""
        plain = [[q.question, *q.choices, q.answer] for q in self.questions]
        return digest(["questions", VERSION, *plain])

    @property
    def units(self) -> tuple[str, ...]:
        """What is scored one by one, as text."""
        return tuple("\n".join((q.question, *q.choices)) for q in self.questions)

    def part(self, chosen: slice) -> Self:
        """Return some of the units as data of their own."""
        return replace(self, questions=self.questions[chosen])

    def __len__(self) -> int:
        return len(self.questions)


Data = Texts | Questions | Labelled | Pairs
KINDS: Mapping[type[Data], DataKind] = {
    Texts: "texts",
    Questions: "questions",
    Labelled: "labels",
    Pairs: "pairs",
}
"""What each kind of data is called."""


def read_data(
    files: Mapping[str, str], *, folder: Path = Path(), most: int = MOST, size: int = WINDOW_BYTES
) -> list[Data]:
    """Return all data that is asked for, in order.

    A `.txt` file is running text. A line of a `.jsonl` file has `text`, or `question`, `choices`
    and `answer`, or `text` and `label`, or `text`, `other` and `similarity`. `zoo:NAME` is the
    zoo's held-out text of an expert, and `zoo:NAME.validation` another one to choose parameters by.

    Args:
        files: name -> path, or `zoo:NAME`.
        folder: that relative paths start from.
        most: windows of each text, and questions of each file, that are scored: the first ones.
        size: bytes of a window.

    Raises:
        SourceError: a file is not there.
        DataError: a file is not UTF-8, holds nothing, or not what is described.
        RecipeError: the zoo has no such text.
    """
    found: list[Data] = []
    errors: list[MergekitLiteError] = []
    for name, file in files.items():
        try:
            found.append(_of_file(name, file, folder, most, size))
        except MergekitLiteError as error:
            errors.append(error)
    if errors:
        raise type(errors[0])([problem for error in errors for problem in error.problems])
    return found


def named_files(words: Iterable[str]) -> dict[str, str]:
    """Return what `NAME=FILE` or `FILE` on a command line name; a file's own name up to a dot.

    Raises:
        RecipeError: two have the same name.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, file = word.partition("=")
        if not equals or Path(word).exists():
            name = word.removeprefix(SCHEME) if word.startswith(SCHEME) else Path(word).name
            name, file = name.split(".")[0], word
        if name in found:
            hint = "give each a name of its own: `--data NAME=FILE`"
            raise RecipeError(f"two files of data are called `{name}`", "--data", hint)
        found[name] = file
    return found


def _of_file(name: str, file: str, folder: Path, most: int, size: int) -> Data:
    path = _zoo_text(file) if file.startswith(SCHEME) else folder / Path(file).expanduser()
    if path.suffix == ".jsonl":
        lines = _objects(path)
        if lines and all(isinstance(v, dict) for _, v in lines):
            if all("question" in value for _, value in lines):
                return Questions(name, _questions(lines[:most]))
            keys = {key for _, value in lines for key in value}
            if "label" in keys:
                return labelled(name, lines[:most])
            if "similarity" in keys:
                return pairs(name, lines[:most])
    pieces: list[str] = []
    for text in read_texts([(name, path)]):
        if text.messages:
            raise DataError(
                "conversations are not scored", text.where, 'write it out as {"text": "..."}'
            )
        pieces += windows(text.text, size)
    return Texts(name, tuple(pieces[:most]))


def _zoo_text(reference: str) -> Path:
    from mergekit_lite.zoo.catalog import EXPERTS, held_out_text

    domain, dot, split = reference.removeprefix(SCHEME).partition(".")
    if domain not in EXPERTS:
        hint = nearest(domain, EXPERTS) or f"it has texts of {', '.join(EXPERTS)}"
        raise RecipeError(f"the zoo has no text of `{domain}`", hint=hint)
    if dot and split not in ("test", "validation"):
        what = f"the zoo's text of `{domain}` has no split `{split}`"
        raise RecipeError(what, hint="there are `test`, which is the default, and `validation`")
    return held_out_text(domain, split or "test")


def _objects(path: Path) -> list[tuple[str, Any]]:
    """Return the lines of a file that are JSON, each with its place; none where one is not."""
    found = []
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if line.strip():
            try:
                found.append((f"{path}:{number}", json.loads(line)))
            except ValueError:
                return []  # reading it as texts tells what is wrong
    return found


def _questions(lines: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[Question, ...]:
    found, problems = [], []
    for where, value in lines:
        try:
            found.append(_question(value))
        except ValueError as error:
            hint = 'write {"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}'
            problems.append(Problem(str(error), where, hint))
    if problems:
        raise DataError(problems[:10])
    return tuple(found)


def _question(value: Mapping[str, Any]) -> Question:
    question, choices, answer = (value.get(key) for key in ("question", "choices", "answer"))
    if not isinstance(question, str):
        raise ValueError("`question` is no text")
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        raise ValueError("`choices` is no list of texts")
    if len(choices) < 2:
        raise ValueError(f"there are {len(choices)} choices, and two are the least")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise ValueError("`answer` is neither the number of a choice, from 0, nor one of them")
    if not 0 <= answer < len(choices):
        raise ValueError(f"`answer` is {answer}, and the choices are 0 to {len(choices) - 1}")
    return Question(question, tuple(choices), answer)
