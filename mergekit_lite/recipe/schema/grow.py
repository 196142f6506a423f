"""What a recipe may say about the experts that it adds to a routed model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from mergekit_lite.recipe.schema.fields import Part


class Addition(Part):
    """Experts that are added to a routed base."""

    expert: str
    """Whose they are: an expert of the recipe, or `base` for copies of its own."""
    take: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Of a routed model: the numbers of the experts that are added, counted from 0. A dense model
    has one for each layer, its feed-forward layer."""
    router: Literal["own", "silent"] | None = None
    """Their rows of the routers: those that their model has (`own`, the default of other routed
    models), or such that no token chooses them until they are trained (`silent`, the default
    else), for which the family needs a bias of experts."""
    where: SkipJsonSchema[str] = Field("", exclude=True)


class Grow(Part):
    """Adds experts to a routed base, behind those that it has."""

    experts: tuple[Addition, ...]
    """What is added, in order: names of dense models, or mappings."""
    rest: Literal["same", "base"] = "same"
    """All other weights of the routed models that lend experts: they must be the base's, bit for
    bit (`same`), or are not looked at (`base`)."""
