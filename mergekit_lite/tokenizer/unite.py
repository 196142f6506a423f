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
    if all(token in known or token in others_added for token in regular(other)):
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
        for token in sorted(ids.keys() - base.keys() - found.keys(), key=lambda t: ids[t]):
            found[token] = after + len(found)
    return found


def unite(base: Data, others: Sequence[Data], more: Sequence[Mapping[str, Any]] = ()) -> Data:
    """Return the base's tokenizer with every token that the others have and it lacks.

    Args:
        base: content of the base's `tokenizer.json`.
        others: those of the experts; `misfit` says nothing about any of them.
        more: further tokens, as entries of `added_tokens` without an id.

    Returns:
        The content of the united `tokenizer.json`. No id of the base changes.
    """
    known = tokens_of(base)
    asked = [{str(entry["content"]): number for number, entry in enumerate(more)}]
    new = new_tokens(known, [*map(tokens_of, others), *asked])
    entries = {str(entry["content"]): dict(entry) for entry in added(base)}
    for entry in [entry for other in others for entry in added(other)] + list(more):
        token = str(entry["content"])
        # What is a token of its own for one and a piece of the model for the other stays the base's
        # way, unless it is special: special tokens must not be reached by spelling them out.
        if token in new or entry.get("special"):
            entries.setdefault(token, {**entry, "id": new.get(token, known.get(token))})
    pieces = {token: number for token, number in new.items() if token not in entries}
    united = dict(base)
    united["added_tokens"] = sorted(entries.values(), key=lambda entry: int(entry["id"]))
    united["model"] = _model(base, others, pieces, united["added_tokens"])
    return united


def _kind(model: Data) -> str:
    if model.get("type"):
        return str(model["type"])
    return "BPE" if "merges" in model else "Unigram" if isinstance(model["vocab"], list) else ""


def _model(
    base: Data, others: Sequence[Data], pieces: Mapping[str, int], entries: Sequence[Data]
) -> Data:
    """Return the base's model with new pieces, which have ids of their own already."""
    model = dict(base["model"])
    if not pieces:
        return model
    if isinstance(model["vocab"], list):
        model["vocab"] = _scored(model["vocab"], others, pieces, entries)
    else:
        # Loaders count added tokens on from the model's size, so those between stand in it too.
        last = max(pieces.values())
        held = {str(e["content"]): int(e["id"]) for e in entries if int(e["id"]) < last}
        model["vocab"] = {**model["vocab"], **held, **pieces}
        if "merges" in model:
            model["merges"] = _merges(model, others)
    return model


def _scored(
    vocab: Sequence[Sequence[Any]],
    others: Sequence[Data],
    pieces: Mapping[str, int],
    entries: Sequence[Data],
) -> list[Sequence[Any]]:
    """Return a list of pieces and scores in which each new piece stands at its id.

    A list has no gaps, so the ids of added tokens in between are held by the tokens themselves.
    """
    scores = {
        piece: score for other in reversed(others) for piece, score in other["model"]["vocab"]
    }
    names = {int(entry["id"]): str(entry["content"]) for entry in entries}
    least = min(float(score) for _, score in vocab) - _UNLIKELY
    by_id = {number: [piece, scores[piece]] for piece, number in pieces.items()}
    behind = range(len(vocab), max(pieces.values()) + 1)
    return [*vocab, *(by_id.get(n) or [names.get(n, f"<unused_{n}>"), least] for n in behind)]


def _merges(model: Data, others: Sequence[Data]) -> list[Any]:
    """Return the base's merges, then those of the others that it lacks."""
    merges = list(model["merges"])
    as_text = bool(merges) and isinstance(merges[0], str)
    known = {_pair(merge) for merge in merges}
    vocab = model["vocab"]
    for other in others:
        for merge in other["model"].get("merges") or ():
            left, right = pair = _pair(merge)
            if pair in known or not (left in vocab and right in vocab and left + right in vocab):
                continue
            known.add(pair)
            merges.append(f"{left} {right}" if as_text else [left, right])
    return merges


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
