"""Dense models whose feed-forward layers can become experts: what their configs mean.

A config may leave out what its own class has as a default, and the class of the routed model has
other defaults. So everything that changes what weights compute is resolved here and written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mergekit_lite.plan.configs import Config, model_type, value

Bias = Literal["none", "qkv", "all"]
"""Which attention projections have a bias: none, the three inputs, or the output too."""
HeadNorm = Literal["none", "head", "whole", "after_rope"]
"""How queries and keys are normalised: not, head by head, all heads together, after rotation."""


@dataclass(frozen=True)
class Dense:
    """A family of dense models.

    Attributes:
        defaults: what its config class takes where the config says nothing.
        bias: which attention projections have a bias; `config` leaves it to `bias_key`.
        bias_key: the entry that says so.
        head_norm: how queries and keys are normalised.
        post_norm: normalises what a layer adds, not what it reads.
        interleaved: rotates neighbouring entries, not halves.
        latent: keys and values are compressed (multi-head latent attention).
        fused: q, k and v are one matrix, gate and up another.
        extra: entries that only this family and its routed one have.
    """

    defaults: Mapping[str, Any]
    bias: Bias | Literal["config"] = "none"
    bias_key: str = "attention_bias"
    head_norm: HeadNorm = "none"
    post_norm: bool = False
    interleaved: bool = False
    latent: bool = False
    fused: bool = False
    extra: tuple[str, ...] = ()


_LLAMA = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "vocab_size": 32000,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GRANITE = ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")
_LATENT = (
    "q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim",
    "rope_interleave", "pretraining_tp",
)  # fmt: skip

DENSE: Mapping[str, Dense] = {
    "llama": Dense(_LLAMA, bias="config"),
    "mistral": Dense(
        {**_LLAMA, "max_position_embeddings": 131072, "num_key_value_heads": 8,
         "sliding_window": 4096}
    ),
    "qwen2": Dense(
        {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 32768,
         "num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28,
         "vocab_size": 151936},
        bias="qkv",
    ),
    "qwen3": Dense(
        {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 32768,
         "num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096,
         "max_window_layers": 28, "vocab_size": 151936},
        bias="config", head_norm="head",
    ),
    "phi3": Dense(
        {**_LLAMA, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "vocab_size": 32064,
         "eos_token_id": 32000, "pad_token_id": 32000},
        fused=True,
    ),
    "olmo2": Dense(
        {**_LLAMA, "rms_norm_eps": 1e-5, "vocab_size": 50304, "bos_token_id": None,
         "eos_token_id": 50279, "pad_token_id": 1},
        bias="config", head_norm="whole", post_norm=True,
    ),
    "ernie4_5": Dense(
        {"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 131072,
         "num_key_value_heads": 2, "head_dim": 128,
         "vocab_size": 103424, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        bias="config", bias_key="use_bias", interleaved=True,
    ),
    "hunyuan_v1_dense": Dense(
        {**_LLAMA, "rms_norm_eps": 1e-5, "vocab_size": 290943, "pad_token_id": 0,
         "eod_token_id": 3},
        bias="config", head_norm="after_rope", extra=("eod_token_id", "sep_token_id"),
    ),
    "granite": Dense(
        {**_LLAMA, "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
         "attention_multiplier": 1.0},
        bias="config", extra=_GRANITE,
    ),
    "deepseek_v2": Dense(
        {**_LLAMA, "vocab_size": 102400, "q_lora_rank": 1536, "kv_lora_rank": 512,
         "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128},
        bias="config", latent=True, extra=_LATENT,
    ),
    "deepseek_v3": Dense(
        {**_LLAMA, "vocab_size": 129280, "max_position_embeddings": 4096, "bos_token_id": 0,
         "eos_token_id": 1, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
         "qk_nope_head_dim": 128, "v_head_dim": 128, "rope_interleave": True},
        bias="config", latent=True, extra=_LATENT,
    ),
}  # fmt: skip
"""Families by `model_type`. DeepSeek's count where all their layers are dense."""

_PLAIN = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "use_cache": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Donor:
    """The base of a routed model: what its config says, with the defaults of its class.

    Attributes:
        model_type: its family.
        dense: that family.
        config: `config.json` as it is.
        hidden, width, layers: sizes, from the weights.
        tied: the head is the embedding.
        bias: which attention projections have a bias.
        rope: the rotation, in the form of `rope_parameters`.
        windows: of each layer, the width of its attention window, None for all tokens.
    """

    model_type: str
    dense: Dense
    config: Mapping[str, Any]
    hidden: int
    width: int
    layers: int
    tied: bool = False
    bias: Bias = "none"
    rope: Mapping[str, Any] = field(default_factory=dict)
    windows: tuple[int | None, ...] = ()

    def get(self, key: str) -> Any:
        """Return an entry of the config, or what its class has where the config has none."""
        found = value(self.config, key)
        if found is not None or key in self.config:
            return found
        return self.dense.defaults.get(key, _PLAIN.get(key))

    @property
    def heads(self) -> int:
        return int(self.get("num_attention_heads") or 1)

    @property
    def key_value_heads(self) -> int:
        return int(self.get("num_key_value_heads") or self.heads)

    @property
    def head_dim(self) -> int:
        return int(self.get("head_dim") or self.hidden // self.heads)

    @property
    def partial(self) -> float:
        """The part of each head that is rotated."""
        return float(self.rope.get("partial_rotary_factor", 1.0))

    @property
    def window(self) -> int | Literal["mixed"] | None:
        """The attention window of all layers, `mixed` where they differ."""
        widths = set(self.windows)
        return widths.pop() if len(widths) == 1 else "mixed"


def donor_of(
    config: Config, hidden: int, width: int, layers: int, *, tied: bool = False
) -> Donor | None:
    """Return what a dense model's config means; None for a family that is not known here.

    Args:
        config: of the base.
        hidden: width of the residual stream.
        width: of its feed-forward layers.
        layers: number of layers.
        tied: the head is the embedding.
    """
    kind = model_type(config)
    if config is None or kind not in DENSE:
        return None
    dense = DENSE[kind]
    plain = Donor(kind, dense, config, hidden, width, layers, tied)
    bias = dense.bias
    if bias == "config":
        bias = "all" if plain.get(dense.bias_key) else "none"
    return replace(plain, bias=bias, rope=_rope(plain), windows=_windows(plain, layers))


def _rope(donor: Donor) -> dict[str, Any]:
    """Return the rotation as newer configs write it, from either spelling."""
    scaling = donor.get("rope_scaling")
    given = donor.get("rope_parameters")
    rope = dict(scaling if isinstance(scaling, Mapping) else given or {})
    if isinstance(given, Mapping) and "rope_theta" in given:
        rope.setdefault("rope_theta", given["rope_theta"])
    kind = rope.pop("type", None)
    rope.setdefault("rope_type", kind or "default")
    rope.setdefault("rope_theta", donor.get("rope_theta"))
    partial = donor.get("partial_rotary_factor")
    if partial is not None:
        rope.setdefault("partial_rotary_factor", partial)
    return rope


def _windows(donor: Donor, layers: int) -> tuple[int | None, ...]:
    if donor.dense.latent or donor.model_type in ("llama", "granite", "olmo2", "ernie4_5"):
        return (None,) * layers
    window = donor.get("sliding_window")
    if donor.model_type in ("mistral", "phi3"):
        return (window,) * layers
    if donor.model_type not in ("qwen2", "qwen3") or not donor.get("use_sliding_window"):
        return (None,) * layers
    kinds = donor.get("layer_types")
    if not isinstance(kinds, list | tuple) or len(kinds) != layers:
        first = int(donor.get("max_window_layers") or 0)
        kinds = ["sliding_attention" if i >= first else "" for i in range(layers)]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
