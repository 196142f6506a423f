"""HunYuan V1: a softmax over the chosen experts and a shared expert in every layer."""

from __future__ import annotations

from typing import Any

from mergekit_lite.moe.donors import Donor
from mergekit_lite.moe.families._types import Family, Shared, Sizes, named


def _settings(donor: Donor, sizes: Sizes) -> dict[str, Any]:
    return {
        "intermediate_size": sizes.width,
        "moe_intermediate_size": [sizes.width] * sizes.layers,
        "num_shared_expert": [1] * sizes.layers,
        "use_mixed_mlp_moe": True,
        "attention_bias": donor.bias == "all",
        "use_qk_norm": True,
    }


HUNYUAN_V1_MOE = Family(
    name="hunyuan_v1_moe",
    architecture="HunYuanMoEV1ForCausalLM",
    donors=("hunyuan_v1_dense",),
    router="mlp.gate.wg.weight",
    experts=named("mlp.experts.{e}"),
    settings=_settings,
    shared=Shared(named("mlp.shared_mlp"), needed=True, single=True),
    bias=("none", "all"),
    head_norms=("after_rope",),
)
