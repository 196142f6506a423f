"""Families of routed models that dense ones can be assembled into, one file each."""

from __future__ import annotations

from collections.abc import Mapping

from mergekit_lite.moe.families._types import PARTS, Family, Shared, Sizes
from mergekit_lite.moe.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from mergekit_lite.moe.families.dots1 import DOTS1
from mergekit_lite.moe.families.ernie4_5_moe import ERNIE4_5_MOE
from mergekit_lite.moe.families.flex_olmo import FLEX_OLMO, OLMOE
from mergekit_lite.moe.families.glm4_moe import GLM4_MOE
from mergekit_lite.moe.families.granitemoe import GRANITEMOE, GRANITEMOESHARED
from mergekit_lite.moe.families.hunyuan_v1_moe import HUNYUAN_V1_MOE
from mergekit_lite.moe.families.mixtral import MIXTRAL
from mergekit_lite.moe.families.qwen import QWEN2_MOE, QWEN3_MOE
from mergekit_lite.moe.families.routed import ROUTED

__all__ = ["FAMILIES", "PARTS", "Family", "Shared", "Sizes"]

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        MIXTRAL, QWEN2_MOE, QWEN3_MOE, GLM4_MOE, DOTS1, GRANITEMOE, GRANITEMOESHARED,
        FLEX_OLMO, OLMOE, DEEPSEEK_V2, DEEPSEEK_V3, ERNIE4_5_MOE, HUNYUAN_V1_MOE,
        ROUTED,
    )
}  # fmt: skip
"""By `model_type`, those that most loaders know first."""
