"""FlexOlmo, which normalises what a layer adds, and OLMoE, which normalises what it reads."""

from __future__ import annotations

from typing import Any

from mergekit_lite.moe.donors import Donor
from mergekit_lite.moe.families._types import Family, Sizes, named


def _settings(donor: Donor, sizes: Sizes) -> dict[str, Any]:
    return {
        "intermediate_size": sizes.width,
        "norm_topk_prob": True,
        "attention_bias": donor.bias == "all",
    }


FLEX_OLMO = Family(
    name="flex_olmo",
    architecture="FlexOlmoForCausalLM",
    donors=("olmo2",),
    router="mlp.gate.weight",
    experts=named("mlp.experts.{e}"),
    settings=_settings,
    norm="flag",
    bias=("none", "all"),
    head_norms=("whole",),
)

OLMOE = Family(
    name="olmoe",
    architecture="OlmoeForCausalLM",
    # No dense family normalises queries and keys over all heads and reads normalised inputs.
    donors=(),
    router="mlp.gate.weight",
    experts=named("mlp.experts.{e}"),
    settings=_settings,
    norm="flag",
    bias=("none", "all"),
    head_norms=("whole",),
)
