"""Ways of telling which experts of a layer go together, one a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from mergekit_lite.moe.merge.methods.hc_smoe import hc_smoe
from mergekit_lite.moe.merge.methods.m_smoe import m_smoe
from mergekit_lite.moe.merge.methods.ream import ream
from mergekit_lite.moe.merge.methods.sub_moe import sub_moe
from mergekit_lite.moe.merge.methods.uncurl import uncurl
from mergekit_lite.moe.merge.seen import Seen


class Method(NamedTuple):
    """A way of grouping.

    Attributes:
        needs: the statistics that it reads, by kind.
        weights: how much experts of a group count by default.
        groups: what was measured, number of groups -> groups of places, the first of each leads.
    """

    needs: Mapping[str, tuple[str, ...]]
    weights: Literal["frequency", "saliency"]
    groups: Callable[[Seen, int], list[list[int]]]


METHODS: Mapping[str, Method] = {
    "ream": Method({"rates": ("logit_gram",), "merging": ("gated",)}, "saliency", ream),
    "hc_smoe": Method({"merging": ("said",)}, "frequency", hc_smoe),
    "m_smoe": Method({"rates": ("logit_gram",)}, "frequency", m_smoe),
    "sub_moe": Method({"merging": ("cosines",)}, "frequency", sub_moe),
    "uncurl": Method({"rates": ("logit_gram",)}, "frequency", uncurl),
}
"""By the name that a recipe writes."""
