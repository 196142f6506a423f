"""Whether tokens of one tokenizer mean the same in another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_lite.tokenizer.read import Tokens, added

_PARTS = ("normalizer", "pre_tokenizer", "decoder")
_MODEL_PARTS = ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")


def misfit(base: Tokens, other: Tokens) -> str:
    """Return why two tokenizers cannot be united, or nothing.

    Tokens that are added to a tokenizer are matched as text before its model runs, so those of any
    other tokenizer can be taken over. Tokens of the model itself mean something only under the same
    kind of model and the same spelling of spaces and bytes.
    """
    if base.data is None or other.data is None:
        return "it has no `tokenizer.json`" if other.data is None else "the base has none"
    others_added = {str(entry["content"]) for entry in added(other.data)}
    if others_added.issuperset(token for token in other.ids if token not in base.ids):
        return ""
    mine, theirs = base.data["model"], other.data["model"]
    if _kind(mine) != _kind(theirs):
        return f"it is of the kind {_kind(theirs)}, the base's of the kind {_kind(mine)}"
    odd = [part for part in _PARTS if base.data.get(part) != other.data.get(part)]
    odd += [part for part in _MODEL_PARTS if (mine.get(part) or "") != (theirs.get(part) or "")]
    return f"its {' and '.join(f'`{part}`' for part in odd)} differ from the base's" if odd else ""


def _kind(model: Mapping[str, Any]) -> str:
    if model.get("type"):
        return str(model["type"])
    return "BPE" if "merges" in model else "Unigram" if isinstance(model["vocab"], list) else ""
