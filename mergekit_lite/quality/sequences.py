"""Data as token ids of one model: what it is given, and which tokens it must predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_lite.calibrate.heads import Head
from mergekit_lite.calibrate.tokens import Sample, Samples
from mergekit_lite.errors import DataError, Problem
from mergekit_lite.quality.data import KINDS, Data, Question, Questions, Texts
from mergekit_lite.quality.labelled import Labelled, Pairs

_LABELS = 10


@dataclass(frozen=True)
class Piece:
    """One sequence that goes through a model.

    Attributes:
        data: name of the data.
        unit: index of the window, question, text or pair.
        choice: index of the choice; of a pair 0 or 1; else 0.
        ids: token ids.
        start: tokens before this one are given, the others are predicted; 1 or more.
        nbytes: bytes of text that the predicted tokens stand for.
        types: which of two texts each token is of, where the tokenizer tells.
        answer: index of the right label, of a text that has one.
    """

    data: str
    unit: int
    choice: int
    ids: tuple[int, ...]
    start: int
    nbytes: int
    types: tuple[int, ...] = ()
    answer: int = 0


@dataclass(frozen=True)
class Taker:
    """What a model can be given, and what it gives.

    Attributes:
        name: of the model, for messages.
        rows: of its embedding, which no id may reach.
        positions: most tokens that it takes.
        head: what it gives.
        labels: names of its labels, in the order of its outputs.
    """

    name: str
    rows: int
    positions: int
    head: Head = "language"
    labels: tuple[str, ...] = ()


def pieces(data: Sequence[Data], tokenizer: Any, taker: Taker) -> list[Piece]:
    """Return all sequences of all data.

    A text begins after the token that begins texts, or a line break where the tokenizer has none,
    so that its first token is predicted too. Before a choice stand its question and a blank. Texts
    with labels, and pairs, are tokenised as the tokenizer has it.

    Args:
        data: what to score on.
        tokenizer: of transformers.
        taker: the model.

    Raises:
        DataError: the tokenizer or the data does not fit the model, a sequence is too long for it,
            or there is nothing to predict.
    """
    problems = [found for each in data for found in _unfit(each, taker)]
    if problems:
        raise DataError(problems)
    opening = _opening(tokenizer)
    found = [piece for each in data for piece in _of_data(each, tokenizer, opening, taker)]
    problems = [
        Problem("the tokenizer gives no token for it", f"{p.data}, piece {p.unit + 1}")
        for p in found
        if not p.ids
    ][:1]
    highest = max((max(piece.ids) for piece in found if piece.ids), default=0)
    if highest >= taker.rows:
        what = f"the tokenizer gives the id {highest}, the model's embedding has {taker.rows} rows"
        hint = "the tokenizer is not this model's: give the one that it was trained with"
        problems.append(Problem(what, "tokenizer", hint))
    longest = max(found, key=lambda piece: len(piece.ids))
    if len(longest.ids) > taker.positions:
        what = f"a piece has {len(longest.ids)} tokens, and the model takes {taker.positions}"
        hint = "give a smaller --window-bytes, or shorter questions and texts"
        problems.append(Problem(what, longest.data, hint))
    for each in data:
        predicts = isinstance(each, Texts | Questions)
        if predicts and not any(len(p.ids) > p.start for p in found if p.data == each.name):
            what = "there is one token, and nothing to predict"
            problems.append(Problem(what, each.name, "give a longer text"))
    if problems:
        raise DataError(problems)
    return found


def _unfit(data: Data, taker: Taker) -> Iterator[Problem]:
    """Yield why a model cannot be scored on some data."""
    kind = KINDS[type(data)]
    if kind in ("texts", "questions") and taker.head != "language":
        hint = 'give lines with "text" and "label", or with "text", "other" and "similarity"'
        yield Problem(f"it holds {kind}, and `{taker.name}` does not predict text", data.name, hint)
    elif isinstance(data, Labelled) and taker.head != "labels":
        hint = "give a model with a head for labels, or leave this one out"
        yield Problem(f"it holds labels, and `{taker.name}` gives texts none", data.name, hint)
    elif isinstance(data, Labelled):
        wrong = {one.label for one in data.labels if _answer(one.label, taker) is None}
        if wrong:
            some = ", ".join(f"`{label}`" for label in sorted(wrong, key=str)[:_LABELS])
            what = f"`{taker.name}` has {len(taker.labels)} labels, and {some} is none of them"
            known = ", ".join(f"{n} ({name})" for n, name in enumerate(taker.labels[:_LABELS]))
            yield Problem(what, data.name, f"they are {known}")


def _answer(label: int | str, taker: Taker) -> int | None:
    """Return the index of a label, None where the head has none such."""
    if isinstance(label, str):
        return taker.labels.index(label) if label in taker.labels else None
    return label if 0 <= label < len(taker.labels) else None


def as_samples(found: Sequence[Piece]) -> Samples:
    """Return sequences as what a calibration runs; row `i` is piece `i`."""
    return Samples(tuple(Sample(p.ids, 0, p.nbytes, p.types) for p in found), ("",))


def _opening(tokenizer: Any) -> list[int]:
    begin = tokenizer.bos_token_id
    if begin is not None and _ids(tokenizer, "a", special=True)[:1] == [begin]:
        return [begin]
    return _ids(tokenizer, "\n")


def _of_data(data: Data, tokenizer: Any, opening: list[int], taker: Taker) -> Iterator[Piece]:
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
    if isinstance(data, Labelled):
        for unit, one in enumerate(data.labels):
            answer = _answer(one.label, taker) or 0
            yield _whole(data.name, unit, 0, tokenizer, one.text, one.other, answer)
        return
    if isinstance(data, Pairs):
        for unit, pair in enumerate(data.pairs):
            for side, text in enumerate((pair.text, pair.other)):
                yield _whole(data.name, unit, side, tokenizer, text)
        return
    for unit, question in enumerate(data.questions):
        for choice in range(len(question.choices)):
            yield _of_choice(data.name, unit, question, choice, tokenizer, opening)


def _whole(
    name: str, unit: int, side: int, tokenizer: Any, text: str, other: str = "", answer: int = 0
) -> Piece:
    """Return a text, or two, as the tokenizer gives them to a model."""
    found = tokenizer(text, other or None, verbose=False)
    types = tuple(found.get("token_type_ids") or ()) if other else ()
    ids = tuple(found["input_ids"])
    return Piece(name, unit, side, ids, 1, len(text.encode()), types, answer)


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
