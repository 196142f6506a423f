"""What a tensor's name says: which layer it is in and which part it plays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

ROLES = (
    "embedding", "head", "norm", "router", "other",
    "attention.q", "attention.k", "attention.v", "attention.o", "attention.other",
    "mlp.gate", "mlp.up", "mlp.down", "mlp.other",
)  # fmt: skip
"""Every role; `attention` and `mlp` stand for all that begin so."""

_SIDE_STACK = re.compile(r"visual|vision|image|audio|speech|vit|vae|mtp", re.IGNORECASE)
_NORM = re.compile(r"norm|^ln_\w+$|^ln\d*$", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_ROUTER = re.compile(r"router|^gate$|_gate$|^gate_inp$|^wg$")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PARAMETERS = _words("weight bias scale")
_FACTORS = _words("lora_A lora_B lora_embedding_A lora_embedding_B lora_magnitude_vector")
_EMBEDDINGS = _words(
    "embed_tokens wte wpe embed_in tok_embeddings word_embeddings embeddings shared "
    "embed_positions patch_embedding patch_embed position_embedding pos_embed"
)
_HEADS = _words("lm_head embed_out output score classifier qa_outputs cls")
_PROJECTIONS = _words("q_proj k_proj v_proj o_proj qkv_proj")


def _by_word(words: Mapping[str, str]) -> dict[str, str]:
    return {word: role for role, text in words.items() for word in text.split()}


_ATTENTION_WORDS = _by_word(
    {
        "attention.q": "q q_proj q_a_proj q_b_proj query wq",
        "attention.k": "k k_proj key wk",
        "attention.v": "v v_proj value wv",
        "attention.o": "o o_proj out_proj c_proj dense proj wo attn_out",
    }
)
_MLP_WORDS = _by_word(
    {
        "mlp.gate": "gate_proj w1 wi_0",
        "mlp.up": "up_proj w3 wi_1 wi c_fc fc1 fc_in dense_h_to_4h linear_fc1 intermediate",
        "mlp.down": "down_proj w2 wo c_proj fc2 fc_out dense_4h_to_h linear_fc2 output ff_out",
        "mlp.other": "gate_up_proj ff_proj",
    }
)
_MLP = re.compile(r"mlp|ffn|feed_?forward|moe|expert|densereludense|^intermediate$", re.IGNORECASE)


def layer_of(name: str) -> int | None:
    """Return the layer a tensor is in: the first component of its name that is an integer.

    This holds for `model.layers.3.`, `transformer.h.3.`, `encoder.layer.3.`, `blocks.3.` and so
    on. A vision tower or another stack beside the language model counts its own layers. None
    outside the layers.
    """
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def stack_of(name: str) -> str:
    """Return what stands before the layer's number, such as `model.layers`; "" outside layers."""
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdecimal()), 0)
    return ".".join(parts[:place])


def is_side_stack(stack: str) -> bool:
    """Return whether a stack stands beside the main one: a vision tower, a draft head."""
    return _SIDE_STACK.search(stack) is not None


def layer_count(names: Iterable[str]) -> int:
    """Return how many layers the model's main stack has, 0 where there are no layers.

    Vision, audio and draft stacks count only where there is no other.
    """
    main = side = 0
    for name in names:
        layer = layer_of(name)
        if layer is None:
            continue
        if is_side_stack(stack_of(name)):
            side = max(side, layer + 1)
        else:
            main = max(main, layer + 1)
    return main or side


def role_of(name: str) -> str:
    """Return the part a tensor plays, one of `ROLES`, from the naming habits of transformers."""
    return _role_of_skeleton(_NUMBER.sub(".0", name))


def role_matches(pattern: str, role: str) -> bool:
    """Return whether a recipe's role covers `role`: itself, or all below it (`attention`)."""
    return role == pattern or role.startswith(pattern + ".")


def _mlp_role(parts: list[str]) -> str:
    # BERT calls both halves `dense` and tells them apart by the module around it.
    module = parts[-2] if parts[-1] == "dense" and len(parts) > 1 else parts[-1]
    if module in _MLP_WORDS:
        return _MLP_WORDS[module]
    return "mlp.other" if any(map(_MLP.search, parts)) else "other"


@cache
def _role_of_skeleton(name: str) -> str:
    """`role_of` for a name whose numbers are all 0: a model has few of those."""
    layered = layer_of(name) is not None
    parts = [part for part in name.split(".") if not part.isdecimal()]
    if len(parts) > 1 and parts[-1] in _PARAMETERS:
        parts.pop()
    # `q_proj.lora_A.default.weight` plays the part of `q_proj.weight`.
    factor = next((i for i, part in enumerate(parts) if part in _FACTORS), 0)
    parts = parts[:factor] if factor else parts
    module = parts[-1] if parts else ""
    if _NORM.search(module):
        return "norm"
    if module in _PROJECTIONS or any(map(_ATTENTION.search, parts)):
        return _ATTENTION_WORDS.get(module, "attention.other")
    # The gate of a routed MLP is the module `gate`; that of a gated MLP is `gate_proj`.
    if layered and any(map(_ROUTER.search, parts[-2:])):
        return "router"
    if not _EMBEDDINGS.isdisjoint(parts):
        return "embedding"
    if layered:
        return _mlp_role(parts) if parts else "other"
    return "other" if _HEADS.isdisjoint(parts) else "head"
