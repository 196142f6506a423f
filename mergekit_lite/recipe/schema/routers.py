"""What a recipe may say about the routers of routed models that are merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from mergekit_lite.recipe.schema.fields import Part, whole


class Routers(Part):
    """Routers that are fitted to those of the experts, on texts of each."""

    method: Literal["harc", "regmean"] = "harc"
    """What is to be kept of the experts' routers: what they choose (`harc`, the least divergence of
    probabilities to second order), or their logits (`regmean`, one regression)."""
    data: Mapping[str, str]
    """For each expert, a file of texts of the kind that it is for, `.txt` or `.jsonl`."""
    tokens: Annotated[int, Field(ge=1), BeforeValidator(whole)] = 16384
    """Most tokens of each expert's texts that are run."""
    length: Annotated[int, Field(ge=1), BeforeValidator(whole)] = 512
    """Most tokens of a text."""
    shrink: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Factor of what says how inputs vary together; less of it trusts few texts less."""
    iterations: Annotated[int, Field(ge=1), BeforeValidator(whole)] = 1000
    """Most steps of `harc` for each layer; it ends earlier where nothing changes any more."""
    least_overlap: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Refuse a result in which a layer chooses fewer than this part of the experts that the
    original routers choose, on texts that were left out of the fit; 0 takes any."""
