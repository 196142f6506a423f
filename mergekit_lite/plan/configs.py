"""What two models' `config.json` say about each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mergekit_lite.checkpoint import FLOAT_DTYPES, TensorInfo, role_of

Config = Mapping[str, Any] | None

_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size",
    "n_embd", "n_layer", "n_head", "d_model", "d_ff", "num_local_experts", "num_experts",
)  # fmt: skip
"""Keys that decide shapes, in the spellings of the common families."""

_BEHAVIOUR = (
    "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act",
    "rope_theta", "rope_parameters", "rope_scaling", "rms_norm_eps", "layer_norm_eps",
    "sliding_window", "layer_types",
)  # fmt: skip
"""Keys that change what equal weights compute."""

_POSITIONS = ("rope_theta", "rope_parameters", "rope_scaling")
"""Keys of rotary positions."""

_NOT_TOKENS = re.compile(r"pos|patch|token_type|wpe|vision|visual|audio|image", re.IGNORECASE)
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared)\."
)

NESTED = ("text_config", "llm_config", "language_config")
"""Where the config of a multimodal model keeps that of its language model."""


def levels(config: Config) -> dict[str, Mapping[str, Any]]:
    """Return a config and its language model's parts, by key; that of the whole is empty."""
    if not config:
        return {}
    parts = {key: config[key] for key in NESTED if isinstance(config.get(key), Mapping)}
    return {"": config, **parts}


def value(config: Config, key: str) -> Any:
    """Return a value of a config, looked up in its language model's part where it has one."""
    if not config:
        return None
    if key in config:
        return config[key]
    for part in NESTED:
        nested = config.get(part)
        if isinstance(nested, Mapping) and key in nested:
            return nested[key]
    return None


def has(config: Config, key: str) -> bool:
    """Return whether a config, or its language model's part, has the key."""
    return bool(config) and (
        key in (config or {}) or any(key in ((config or {}).get(part) or {}) for part in NESTED)
    )


def sizes_differ(expert: Config, base: Config) -> str:
    """Return `hidden_size 5120 (base 4096), ...` for the sizes that differ, or nothing."""
    return _differing(expert, base, _SIZES)


def behaviour_differs(expert: Config, base: Config) -> str:
    """Return the settings in which two configs compute differently with equal shapes."""
    return _differing(expert, base, _BEHAVIOUR)


def positions_differ(expert: Config, base: Config) -> str:
    """Return the settings of rotary positions in which two configs differ."""
    return _differing(expert, base, _POSITIONS)


def _differing(expert: Config, base: Config, keys: tuple[str, ...]) -> str:
    # A key that only one of the two writes is left to its default by the other: no evidence.
    return ", ".join(
        f"{key} {value(expert, key)} (base {value(base, key)})"
        for key in keys
        if has(expert, key) and has(base, key) and value(expert, key) != value(base, key)
    )


def model_type(config: Config) -> str:
    """Return the family a config names, or nothing."""
    found = (config or {}).get("model_type")
    return found if isinstance(found, str) else ""


def architectures(config: Config) -> str:
    """Return the classes a config names."""
    found = (config or {}).get("architectures")
    return ", ".join(map(str, found)) if isinstance(found, list) else ""


def ties_head(config: Config) -> bool | None:
    """Return whether the head shares the embedding's weights; None if the config does not say.

    The library that writes these files leaves the key out where it has its default of true.
    """
    found = value(config, "tie_word_embeddings")
    return found if isinstance(found, bool) else None


def token_tensors(tensors: Mapping[str, TensorInfo], config: Config) -> tuple[tuple[str, ...], int]:
    """Return the tensors that have a row for each token, and how many rows they have.

    They are the embedding of tokens, which comes first, the head and its bias, by their names; no
    tensors and 0 where there is no such embedding.
    """
    found = {
        name: info.shape[0]
        for name, info in tensors.items()
        if info.shape
        and info.dtype in FLOAT_DTYPES
        and role_of(name) in ("embedding", "head")
        and not _NOT_TOKENS.search(name)
    }
    embeddings = [name for name in found if role_of(name) == "embedding"]
    named = value(config, "vocab_size")
    sure = [name for name in embeddings if found[name] == named or _EMBEDDING.search(name)]
    if not sure:
        return (), 0
    rows = found[sure[0]]
    return (sure[0], *(n for n in found if found[n] == rows and n != sure[0])), rows
