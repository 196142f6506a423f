"""What splitting a layer takes beside the layer and its texts, from what a recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_lite.moe.carve._layer import CHUNK


def working_bytes(carve: Mapping[str, Any]) -> int:
    """Return the bytes of memory that the neurons of one layer are worked on in.

    Args:
        carve: `Plan.moe["carve"]`.
    """
    width = int(carve["width"])
    some = 4 * 4 * CHUNK * width
    if carve["method"] == "coactivation":
        return some + 4 * width * width  # the graph
    return some
