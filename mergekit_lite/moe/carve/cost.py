"""What splitting layers takes beside the layers and their texts, from what a recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_lite.moe.carve._layer import CHUNK

_GRAPH = 3
"""How many times what a batch takes in a layer stays in memory while gradients go back."""


def working_bytes(carve: Mapping[str, Any], *, tokens: int, hidden: int) -> int:
    """Return the bytes of memory that the neurons of one layer are worked on in.

    Args:
        carve: `Plan.moe["carve"]`.
        tokens: that are run.
        hidden: width of the model.
    """
    width = int(carve["width"])
    some = 4 * 4 * CHUNK * width
    if carve["method"] == "coactivation":
        return some + 4 * width * width  # the graph
    if carve["method"] == "gradient":
        # What enters the layer, what leaves it and the gradients, and sums for each slice.
        return some + 15 * tokens * hidden + 16 * int(carve["experts"]) * width
    return some


def graph_bytes(carve: Mapping[str, Any], *, layer: int, length: int, vocabulary: int) -> int:
    """Return what one batch takes on its way, or one text at the head.

    Args:
        carve: `Plan.moe["carve"]`.
        layer: bytes that a batch takes in a layer, where nothing is followed back.
        length: most tokens of a text.
        vocabulary: rows of the head.
    """
    if carve["method"] != "gradient":
        return layer
    return max((1 + _GRAPH) * layer, 20 * length * vocabulary)
