"""ERNIE 4.5: a softmax with a bias in the choice, made to add up to 1; the shared expert is
optional."""

from __future__ import annotations

from typing import Any

from mergekit_lite.moe.donors import Donor
from mergekit_lite.moe.families._types import Family, Shared, Sizes, named


def _settings(donor: Donor, sizes: Sizes) -> dict[str, Any]:
    return {
        "intermediate_size": donor.width,
        "moe_intermediate_size": sizes.width,
        "moe_num_shared_experts": sizes.shared_width // sizes.width,
        "moe_layer_start_index": len(sizes.dense_layers),
        "moe_layer_end_index": sizes.layers - 1,
        "moe_layer_interval": 1,
        "moe_norm_min": 1e-12,
        "use_bias": False,
    }


ERNIE4_5_MOE = Family(
    name="ernie4_5_moe",
    architecture="Ernie4_5_MoeForCausalLM",
    donors=("ernie4_5",),
    router="mlp.gate.weight",
    experts=named("mlp.experts.{e}"),
    settings=_settings,
    correction="mlp.moe_statics.e_score_correction_bias",
    correction_rows=True,
    shared=Shared(named("mlp.shared_experts")),
    dense="first",
)
