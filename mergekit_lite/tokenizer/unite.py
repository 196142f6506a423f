"""One tokenizer out of several: the base's, with the tokens that it lacks put behind its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mergekit_lite.tokenizer.document import MERGES, VOCAB, edits
from mergekit_lite.tokenizer.read import Tokens, added

Data = Mapping[str, Any]
"""The content of a `tokenizer.json`."""

_UNLIKELY = 10.0
"""How far below the least likely piece a piece that only holds an id's place is put."""


def new_tokens(base: Mapping[str, int], others: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the tokens that the base lacks with their new ids: next to the base's, in order.

    Args:
        base: token -> id.
        others: token -> id of the others, each in order of ids.
    """
    after = max(base.values(), default=-1) + 1
    found: dict[str, int] = {}
    for ids in others:
        new = [token for token in ids if token not in base and token not in found]
        first = after + len(found)
        found |= {token: first + number for number, token in enumerate(new)}
    return found


def additions(
    base: Tokens, others: Sequence[Tokens], new: Mapping[str, int], more: Sequence[Data] = ()
) -> dict[str, Any]:
    """Return what is to be changed in the text of the base's tokenizer, as plain data.

    No id of the base changes.

    Args:
        base: its tokens, read from a `tokenizer.json`.
        others: those of the experts; `misfit` says nothing about any of them.
        new: the tokens that the base lacks with their ids.
        more: entries of `added_tokens`, without an id, of those that no other tokenizer has.

    Returns:
        `entries` of new added tokens, how many new `pieces` the model has, and the `edits` of the
        text that has this `sha256`. Nothing where nothing is new.
    """
    if base.document is None:
        return {}
    data = base.document.data
    entries = _new_entries(base, others, more, new)
    pieces = {token: number for token, number in new.items() if token not in entries}
    if not entries and not pieces:
        return {}
    listed = sorted([*added(data), *entries.values()], key=lambda entry: int(entry["id"]))
    model = {VOCAB: _pieces(data["model"]["vocab"], others, pieces, listed)}
    if pieces and isinstance(data["model"].get("merges"), list):
        model[MERGES] = _new_merges(data, others, pieces)
    return {
        "entries": list(entries.values()),
        "pieces": len(pieces),
        "edits": [list(edit) for edit in edits(base.document, listed, model)],
        "sha256": base.document.sha256,
    }


def _new_entries(
    base: Tokens, others: Sequence[Tokens], more: Sequence[Data], new: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Return the entries of added tokens that the base lacks, by token."""
    old = {str(entry["content"]) for entry in added(base.data or {})}
    entries: dict[str, dict[str, Any]] = {}
    every = [entry for other in others for entry in added(other.data or {})]
    for entry in every + list(more):
        token = str(entry["content"])
        # What is a token of its own for one and a piece of the model for the other stays the base's
        # way, unless it is special: special tokens must not be reached by spelling them out.
        if token not in old and (token in new or entry.get("special")):
            whole = {**entry, "id": new.get(token, base.ids.get(token))}
            # Sorted, because a plan that has travelled as JSON has its keys in that order.
            entries.setdefault(token, dict(sorted(whole.items())))
    return entries


def _pieces(
    vocab: Mapping[str, int] | Sequence[Sequence[Any]],
    others: Sequence[Tokens],
    pieces: Mapping[str, int],
    listed: Sequence[Data],
) -> list[list[Any]]:
    """Return what is put behind the pieces of a model, so that each new one has its id.

    Args:
        vocab: the model's own, by id, or as a list of pieces and scores.
        others: tokenizers that the new ones come from.
        pieces: the new ones with their ids.
        listed: the added tokens of the result.
    """
    if not pieces:
        return []
    last = max(pieces.values())
    names = {int(e["id"]): str(e["content"]) for e in listed if int(e["id"]) < last}
    if isinstance(vocab, Mapping):
        # Loaders count added tokens on from the model's size, so those between stand in it too.
        held = [[token, number] for number, token in names.items() if token not in vocab]
        return held + [[token, number] for token, number in pieces.items()]
    # A list has no gaps, so the ids of added tokens in between are held by the tokens themselves.
    every = (pair for other in reversed(others) for pair in _scored(other))
    scores = {piece: score for piece, score in every if piece in pieces}
    least = min(float(score) for _, score in vocab) - _UNLIKELY
    by_id = {number: [piece, scores[piece]] for piece, number in pieces.items()}
    behind = range(len(vocab), last + 1)
    return [by_id.get(n) or [names.get(n, f"<unused_{n}>"), least] for n in behind]


def _scored(tokens: Tokens) -> Iterable[Sequence[Any]]:
    vocab = (tokens.data or {})["model"]["vocab"] if tokens.data else ()
    return vocab if isinstance(vocab, list) else ()


def _new_merges(base: Data, others: Sequence[Tokens], pieces: Mapping[str, int]) -> list[Any]:
    """Return the merges that the base lacks and whose tokens are known, as the base writes them."""
    merges, vocab = base["model"]["merges"], base["model"]["vocab"]
    as_text = bool(merges) and isinstance(merges[0], str)
    known = set(_merges(merges, as_text=as_text))
    found: list[Any] = []
    for other in others:
        theirs = _merges(
            (other.data or {"model": {}})["model"].get("merges") or (), as_text=as_text
        )
        for merge in [merge for merge in theirs if merge not in known]:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            whole = left + right
            if (
                (left in vocab or left in pieces)
                and (right in vocab or right in pieces)
                and (whole in pieces or whole in vocab)
            ):
                known.add(merge)
                found.append(merge)
    return found


def _merges(
    merges: Sequence[str | Sequence[str]], *, as_text: bool
) -> Iterable[str | tuple[str, ...]]:
    """Return merges in one of the two ways that they are written: as text, or as pairs."""
    if bool(merges) and isinstance(merges[0], str):
        return map(str, merges) if as_text else (tuple(str(merge).split(" ")) for merge in merges)
    return map(" ".join, merges) if as_text else map(tuple, merges)
