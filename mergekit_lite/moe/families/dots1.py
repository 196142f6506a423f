"""dots.llm1: as GLM-4.5, with normalised queries and keys. vLLM dropped it after 0.23."""

from __future__ import annotations

from typing import Any

from mergekit_lite.moe.donors import Donor
from mergekit_lite.moe.families._types import Family, Shared, Sizes, named
from mergekit_lite.moe.families.glm4_moe import grouped


def _settings(donor: Donor, sizes: Sizes) -> dict[str, Any]:
    kinds = ["sliding_attention" if window else "full_attention" for window in donor.windows]
    return {
        **grouped(donor, sizes),
        "attention_bias": donor.bias == "all",
        "sliding_window": next(filter(None, donor.windows), None),
        "max_window_layers": donor.get("max_window_layers") or sizes.layers,
        "layer_types": kinds,
        "scoring_func": "noaux_tc",
    }


DOTS1 = Family(
    name="dots1",
    architecture="Dots1ForCausalLM",
    donors=("qwen3",),
    router="mlp.gate.weight",
    experts=named("mlp.experts.{e}"),
    settings=_settings,
    correction="mlp.gate.e_score_correction_bias",
    shared=Shared(named("mlp.shared_experts"), needed=True),
    norm="flag",
    sigmoid=True,
    dense="first",
    bias=("none", "all"),
    head_norms=("head",),
    window="layers",
)
