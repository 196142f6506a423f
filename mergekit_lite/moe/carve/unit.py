"""How a slice that is chosen comes to count in full, in families whose weights add up to less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_lite.moe.donors import Donor
from mergekit_lite.moe.families import Family, Sizes


def unit_weights(
    family: Family, donor: Donor, sizes: Sizes, scale: float = 1.0
) -> tuple[float, Mapping[str, Any]]:
    """Return the factor of the down projections, and the entries of the config, for weights of 1.

    Routers are so small that their scores are nearly alike. Then each of the k chosen slices has
    the weight 1/k where weights are made to add up to 1, and 1/N of all N where they are not. The
    exact router has a class of its own, which gives 1. A `scale` comes on top.
    """
    count, chosen = sizes.experts, sizes.per_token
    if family.name == "routed":
        return scale, {"router": "cmoe"}
    if "routed_scaling_factor" in family.settings(donor, sizes):
        whole = count if family.norm == "never" else chosen
        return 1.0, {"routed_scaling_factor": scale * whole}
    if family.name == "qwen2_moe":
        # llama.cpp never makes its weights add up to 1, so that is what all loaders agree on.
        return scale * count, {"norm_topk_prob": False}
    return scale * chosen, {}
