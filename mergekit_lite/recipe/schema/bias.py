"""What a recipe may say about experts of a routed model that are switched on or off."""

from __future__ import annotations

from collections.abc import Mapping

from mergekit_lite.recipe.schema.fields import Part

Switch = tuple[int, ...] | Mapping[int, tuple[int, ...]] | None


class SwitchExperts(Part):
    """Experts that no token chooses any more, or every token, by the bias of their routers."""

    off: Switch = None
    """Numbers of experts that no token is to choose, for all layers or by layer: `{3: [1, 5]}`.
    What is left computes what it would if they were pruned."""
    on: Switch = None
    """Numbers of experts that every token is to choose."""
