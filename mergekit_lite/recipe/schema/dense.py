"""What a recipe may say about the dense model that a routed one becomes."""

from __future__ import annotations

from typing import Literal

from mergekit_lite.recipe.schema.fields import Part


class ToDense(Part):
    """One feed-forward layer in place of all experts of each routed layer."""

    method: Literal["mean", "frequency", "top1", "concat"] = "mean"
    """The `mean` of all experts, the mean weighed by the `frequency` with which tokens choose them,
    or the one that most tokens choose (`top1`). `concat` puts the slices of a carved model together
    again, each neuron where it was."""
    stats: str | None = None
    """Of `frequency` and `top1`: a folder that `calibrate --collect rates` has made of the base."""
