"""DeepSeek-V2 and V3, for dense models with the same latent attention."""

from __future__ import annotations

from typing import Any

from mergekit_lite.moe.donors import Donor
from mergekit_lite.moe.families._types import Family, Shared, Sizes, named
from mergekit_lite.moe.families.glm4_moe import grouped


def _v2(donor: Donor, sizes: Sizes) -> dict[str, Any]:
    return {
        **grouped(donor, sizes),
        "norm_topk_prob": False,
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "moe_layer_freq": 1,
        "attention_bias": donor.bias == "all",
    }


def _v3(donor: Donor, sizes: Sizes) -> dict[str, Any]:
    return {
        **grouped(donor, sizes),
        # vLLM has no correction bias and a softmax unless the config says these two.
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": 0,
        "attention_bias": donor.bias == "all",
    }


DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    donors=("deepseek_v2",),
    router="mlp.gate.weight",
    experts=named("mlp.experts.{e}"),
    settings=_v2,
    shared=Shared(named("mlp.shared_experts"), needed=True),
    norm="never",
    dense="first",
    bias=("none", "all"),
)

DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    donors=("deepseek_v3",),
    router="mlp.gate.weight",
    experts=named("mlp.experts.{e}"),
    settings=_v3,
    correction="mlp.gate.e_score_correction_bias",
    shared=Shared(named("mlp.shared_experts"), needed=True),
    norm="flag",
    sigmoid=True,
    dense="first",
    bias=("none", "all"),
)
