"""Data as token ids of one model: what it is given, and which tokens it must predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_lite.calibrate.tokens import Sample, Samples
from mergekit_lite.errors import DataError, Problem
from mergekit_lite.quality.data import Data, Question, Texts


@dataclass(frozen=True)
class Piece:
    """One sequence that goes through a model.

    Attributes:
        data: name of the data.
        unit: index of the window or question.
        choice: index of the choice; 0 for a window.
        ids: token ids.
        start: tokens before this one are given, the others are predicted; 1 or more.
        nbytes: bytes of text that the predicted tokens stand for.
    """

    data: str
    unit: int
    choice: int
    ids: tuple[int, ...]
    start: int
    nbytes: int


def pieces(data: Sequence[Data], tokenizer: Any, *, rows: int, positions: int) -> list[Piece]:
    """Return all sequences of all data.

    A text begins after the token that begins texts, or a line break where the tokenizer has none,
    so that its first token is predicted too. Before a choice stand its question and a blank.

    Args:
        data: what to score on.
        tokenizer: of transformers.
        rows: of the model's embedding, which no id may reach.
        positions: most tokens that the model takes.

    Raises:
        DataError: the tokenizer does not fit the model, a sequence is too long for it, or there
            is nothing to predict.
    """
    opening = _opening(tokenizer)
    found = [piece for each in data for piece in _of_data(each, tokenizer, opening)]
    problems = [
        Problem("the tokenizer gives no token for it", f"{p.data}, piece {p.unit + 1}")
        for p in found
        if not p.ids
    ][:1]
    highest = max((max(piece.ids) for piece in found if piece.ids), default=0)
    if highest >= rows:
        what = f"the tokenizer gives the id {highest}, the model's embedding has {rows} rows"
        hint = "the tokenizer is not this model's: give the one that it was trained with"
        problems.append(Problem(what, "tokenizer", hint))
    longest = max(found, key=lambda piece: len(piece.ids))
    if len(longest.ids) > positions:
        what = f"a piece has {len(longest.ids)} tokens, and the model takes {positions}"
        hint = "give a smaller --window-bytes, or shorter questions"
        problems.append(Problem(what, longest.data, hint))
    for each in data:
        if not any(len(p.ids) > p.start for p in found if p.data == each.name):
            what = "there is one token, and nothing to predict"
            problems.append(Problem(what, each.name, "give a longer text"))
    if problems:
        raise DataError(problems)
    return found


def as_samples(found: Sequence[Piece]) -> Samples:
    """Return sequences as what a calibration runs; row `i` is piece `i`."""
    return Samples(tuple(Sample(piece.ids, 0, piece.nbytes) for piece in found), ("",))


def _opening(tokenizer: Any) -> list[int]:
    begin = tokenizer.bos_token_id
    if begin is not None and _ids(tokenizer, "a", special=True)[:1] == [begin]:
        return [begin]
    return _ids(tokenizer, "\n")


def _of_data(data: Data, tokenizer: Any, opening: list[int]) -> Iterator[Piece]:
    if isinstance(data, Texts):
        for unit, window in enumerate(data.windows):
            ids = _ids(tokenizer, window)
            nbytes = len(window.encode())
            if not opening:
                # Nothing stands before the first token, so it cannot be predicted.
                nbytes -= len(tokenizer.decode(ids[:1]).encode())
            start = max(len(opening), 1)
            yield Piece(data.name, unit, 0, (*opening, *ids), start, nbytes)
        return
    for unit, question in enumerate(data.questions):
        for choice in range(len(question.choices)):
            yield _of_choice(data.name, unit, question, choice, tokenizer, opening)


def _of_choice(
    name: str, unit: int, question: Question, choice: int, tokenizer: Any, opening: list[int]
) -> Piece:
    # Most tokenizers put a blank at the beginning of a word: it belongs to the choice.
    before = question.question.rstrip()
    answer = question.choices[choice].strip()
    given = _ids(tokenizer, before)
    ids = _ids(tokenizer, f"{before} {answer}")
    # Where a token spans the blank, what is given ends before it.
    pairs = enumerate(zip(given, ids, strict=False))
    shared = next((i for i, (one, other) in pairs if one != other), len(given))
    start = max(len(opening) + min(shared, len(ids) - 1), 1)
    return Piece(name, unit, choice, (*opening, *ids), start, len(answer.encode()))


def _ids(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids
