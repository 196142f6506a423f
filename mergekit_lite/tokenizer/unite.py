"""One tokenizer out of several: the base's, with the tokens that it lacks put behind its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mergekit_lite.tokenizer.read import added, regular, tokens_of

Data = Mapping[str, Any]
"""The content of a `tokenizer.json`."""

_PARTS = ("normalizer", "pre_tokenizer", "decoder")
_MODEL_PARTS = ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
_UNLIKELY = 10.0
"""How far below the least likely piece a piece that only holds an id's place is put."""


def misfit(base: Data, other: Data) -> str:
    """Return why two tokenizers cannot be united, or nothing.

    Tokens that are added to a tokenizer are matched as text before its model runs, so those of any
    other tokenizer can be taken over. Tokens of the model itself mean something only under the same
    kind of model and the same spelling of spaces and bytes.
    """
    mine, theirs = base["model"], other["model"]
    known = tokens_of(base)
    others_added = {str(entry["content"]) for entry in added(other)}
    if regular(other).keys() <= known.keys() | others_added:
        return ""
    if _kind(mine) != _kind(theirs):
        return f"it is of the kind {_kind(theirs)}, the base's of the kind {_kind(mine)}"
    odd = [part for part in _PARTS if base.get(part) != other.get(part)]
    odd += [part for part in _MODEL_PARTS if (mine.get(part) or "") != (theirs.get(part) or "")]
    return f"its {' and '.join(f'`{part}`' for part in odd)} differ from the base's" if odd else ""


def new_tokens(base: Mapping[str, int], others: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the tokens that the base lacks with their new ids: next to the base's, in order."""
    after = max(base.values(), default=-1) + 1
    found: dict[str, int] = {}
    for ids in others:
        for token in sorted(ids.keys() - base.keys() - found.keys(), key=ids.__getitem__):
            found[token] = after + len(found)
    return found


def unite(base: Data, others: Sequence[Data], more: Sequence[Data] = ()) -> Data:
    """Return the base's tokenizer with every token that the others have and it lacks.

    Args:
        base: content of the base's `tokenizer.json`.
        others: those of the experts; `misfit` says nothing about any of them.
        more: further tokens, as entries of `added_tokens` without an id.

    Returns:
        The content of the united `tokenizer.json`. No id of the base changes.
    """
    return extended(base, additions(base, others, more))


def additions(base: Data, others: Sequence[Data], more: Sequence[Data] = ()) -> dict[str, Any]:
    """Return what `extended` is to add to the base's tokenizer, as plain data; see `unite`.

    Returns:
        `entries` of added tokens, `pieces` of the model as pairs of token and id, and where the
        model has them their `scores` and the `merges` that make them.
    """
    known = tokens_of(base)
    asked = [{str(entry["content"]): number for number, entry in enumerate(more)}]
    new = new_tokens(known, [*map(tokens_of, others), *asked])
    old = {str(entry["content"]) for entry in added(base)}
    entries: dict[str, dict[str, Any]] = {}
    for entry in [entry for other in others for entry in added(other)] + list(more):
        token = str(entry["content"])
        # What is a token of its own for one and a piece of the model for the other stays the base's
        # way, unless it is special: special tokens must not be reached by spelling them out.
        if token not in old and (token in new or entry.get("special")):
            whole = {**entry, "id": new.get(token, known.get(token))}
            # Sorted, because a plan that has travelled as JSON has its keys in that order.
            entries.setdefault(token, dict(sorted(whole.items())))
    pieces = {token: number for token, number in new.items() if token not in entries}
    found: dict[str, Any] = {"entries": list(entries.values()), "pieces": list(pieces.items())}
    if pieces and isinstance(base["model"]["vocab"], list):
        every = (pair for other in reversed(others) for pair in other["model"]["vocab"])
        scores = {piece: score for piece, score in every if piece in pieces}
        found["scores"] = [scores[piece] for piece in pieces]
    if pieces and "merges" in base["model"]:
        found["merges"] = _new_merges(base, others, pieces)
    return found


def extended(base: Data, more: Mapping[str, Any]) -> Data:
    """Return a tokenizer with what `additions` found."""
    if not more["entries"] and not more["pieces"]:
        return base
    entries = sorted([*added(base), *more["entries"]], key=lambda entry: int(entry["id"]))
    model = dict(base["model"])
    pieces = dict(more["pieces"])
    if pieces and isinstance(model["vocab"], list):
        model["vocab"] = _scored(model["vocab"], pieces, more["scores"], entries)
    elif pieces:
        # Loaders count added tokens on from the model's size, so those between stand in it too.
        last = max(pieces.values())
        held = {str(e["content"]): int(e["id"]) for e in entries if int(e["id"]) < last}
        model["vocab"] = {**model["vocab"], **held, **pieces}
    if more.get("merges"):
        model["merges"] = [*model["merges"], *more["merges"]]
    return {**base, "added_tokens": entries, "model": model}


def _kind(model: Data) -> str:
    if model.get("type"):
        return str(model["type"])
    return "BPE" if "merges" in model else "Unigram" if isinstance(model["vocab"], list) else ""


def _scored(
    vocab: Sequence[Sequence[Any]],
    pieces: Mapping[str, int],
    scores: Sequence[float],
    entries: Sequence[Data],
) -> list[Sequence[Any]]:
    """Return a list of pieces and scores in which each new piece stands at its id.

    A list has no gaps, so the ids of added tokens in between are held by the tokens themselves.
    """
    names = {int(entry["id"]): str(entry["content"]) for entry in entries}
    least = min(float(score) for _, score in vocab) - _UNLIKELY
    pairs = zip(pieces.items(), scores, strict=True)
    by_id = {number: [piece, score] for (piece, number), score in pairs}
    behind = range(len(vocab), max(pieces.values()) + 1)
    return [*vocab, *(by_id.get(n) or [names.get(n, f"<unused_{n}>"), least] for n in behind)]


def _new_merges(base: Data, others: Sequence[Data], pieces: Mapping[str, int]) -> list[Any]:
    """Return the merges that the base lacks and whose tokens are known, as the base writes them."""
    merges, vocab = base["model"]["merges"], base["model"]["vocab"].keys() | pieces.keys()
    as_text = bool(merges) and isinstance(merges[0], str)
    known = set(_pairs(merges))
    found: list[Any] = []
    for other in others:
        new = [pair for pair in _pairs(other["model"].get("merges") or ()) if pair not in known]
        new = [(a, b) for a, b in new if a in vocab and b in vocab and a + b in vocab]
        known.update(new)
        found += [f"{a} {b}" for a, b in new] if as_text else map(list, new)
    return found


def _pairs(merges: Sequence[str | Sequence[str]]) -> Iterable[tuple[str, ...]]:
    if merges and isinstance(merges[0], str):
        return (tuple(str(merge).split(" ")) for merge in merges)
    return map(tuple, merges)
