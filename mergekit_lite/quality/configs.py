"""Entries of a config that change what the same weights compute, held to those of parents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergekit_lite.errors import Problem

FUNCTION = (
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_eps",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "num_attention_heads",
    "n_head",
    "rotary_pct",
    "partial_rotary_factor",
    "global_rope_theta",
    "local_rope_theta",
    "rope_local_base_freq",
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
)
"""Entries that a merge has no reason to change."""


def config_faults(
    config: Mapping[str, Any] | None, parents: Sequence[Mapping[str, Any] | None]
) -> Iterator[Problem]:
    """Yield entries that no parent has in this way.

    Args:
        config: of the model.
        parents: configs of its base and experts; those without one say nothing.
    """
    known = [_flat(each) for each in parents if each is not None]
    if config is None or not known:
        return
    own = _flat(config)
    for key in ("rope base", "rope scaling", *FUNCTION):
        values = [parent[key] for parent in known if key in parent]
        if key in own and values and own[key] not in values:
            what = f"its {key} is {own[key]}, that of its parents {values[0]}"
            yield Problem(what, "config.json", "the weights were trained with the parents' value")


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries in question, those on rotary embeddings in the form of any version."""
    text = config.get("text_config")
    inner = {**config, **text} if isinstance(text, Mapping) else dict(config)
    found = {key: inner[key] for key in FUNCTION if inner.get(key) is not None}
    rope = inner.get("rope_parameters")
    scaling = rope if isinstance(rope, Mapping) else inner.get("rope_scaling") or {}
    base = (rope.get("rope_theta") if isinstance(rope, Mapping) else None) or inner.get(
        "rope_theta", inner.get("rotary_emb_base")
    )
    if isinstance(base, int | float):
        found["rope base"] = float(base)
    if isinstance(scaling, Mapping):
        kept = {k: v for k, v in scaling.items() if k not in ("rope_theta", "type")}
        kept.setdefault("rope_type", scaling.get("type", "default"))
        found["rope scaling"] = kept
    return found
