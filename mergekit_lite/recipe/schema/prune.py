"""What a recipe may say about the experts of a routed model that it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from mergekit_lite.recipe.schema.fields import Part
from mergekit_lite.recipe.text import number

PruneMethod = Literal[
    "frequency",
    "gate",
    "ean",
    "man",
    "msan",
    "max_activation",
    "reap",
    "easy_ep",
    "naee",
    "router_norm",
    "router_change",
    "random",
    "listed",
]


def _keep(value: Any) -> Any:
    """Return a whole number of experts, or a share below 1."""
    found = number(value)
    if found is not None and (0 < found < 1 or (found >= 1 and found == int(found))):
        return int(found) if found >= 1 else found
    what = f"`{value}` is neither a number of experts nor a share of them"
    hint = "write `keep: 4` for four experts of each layer, or `keep: 0.5` for half of them"
    raise PydanticCustomError("keep", "{what}", {"what": what, "hint": hint})


Keep = Annotated[
    int | float | None,
    Field(default=None),
    BeforeValidator(lambda value: None if value is None else _keep(value)),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0}),
]
"""A number of experts, or a share of them below 1."""


class Prune(Part):
    """Which experts of each layer of a routed base stay; the others are left out."""

    keep: Keep = None
    """How many experts of each layer stay: a number (`4`), or a share below 1 (`0.5`)."""
    method: PruneMethod = "reap"
    """What tells experts apart; those with the highest scores stay."""
    stats: str | None = None
    """A folder that `calibrate --collect rates` has made of the base (`naee`: `outputs`)."""
    pretrained: str | None = None
    """Of `router_norm` and `router_change`: the expert that is the model before its tuning."""
    experts: tuple[int, ...] | Mapping[int, tuple[int, ...]] | None = None
    """Of `listed`: the numbers of the experts that stay, for all layers or by layer."""
    protect: Literal["none", "super", "outliers"] = "none"
    """Experts that stay whatever their score: `super` ones, whose largest activation stands out,
    in the first three quarters of the layers, or such `outliers` in all."""
    mtp: Literal["drop", "last"] | None = None
    """What becomes of layers that draft tokens ahead, of which nothing is measured: they are left
    out (`drop`), or keep the experts that the `last` layer keeps."""
