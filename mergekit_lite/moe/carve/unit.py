"""How a slice that is chosen comes to count in full, in families whose weights add up to less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_lite.moe.donors import Donor
from mergekit_lite.moe.families import Family, Sizes


def unit_weights(family: Family, donor: Donor, sizes: Sizes) -> tuple[float, Mapping[str, Any]]:
    """Return the factor of the down projections, and the entries of the config, for weights of 1.

    Routers are so small that their scores are nearly alike. Then each of the k chosen slices has
    the weight 1/k where weights are made to add up to 1, and 1/N of all N where they are not. The
    exact router has a class of its own, which gives 1.
    """
    count, chosen = sizes.experts, sizes.per_token
    if family.name == "routed":
        return 1.0, {"router": "cmoe"}
    if "routed_scaling_factor" in family.settings(donor, sizes):
        return 1.0, {"routed_scaling_factor": float(count if family.norm == "never" else chosen)}
    if family.name == "qwen2_moe":
        # llama.cpp never makes its weights add up to 1, so that is what all loaders agree on.
        return float(count), {"norm_topk_prob": False}
    return float(chosen), {}
