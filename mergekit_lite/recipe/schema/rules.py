"""Which tensors and layers are treated otherwise than by the recipe's chain."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from mergekit_lite.checkpoint.names import ROLES as TENSOR_ROLES
from mergekit_lite.recipe.layers import covers
from mergekit_lite.recipe.schema.fields import LayerRanges, Part
from mergekit_lite.recipe.schema.inputs import Steps

ROLES = (*TENSOR_ROLES, "attention", "mlp")
"""Roles a rule can match; `attention` matches `attention.q` and its like."""

ACTIONS = ("take", "drop", "steps", "set")


class Slice(Part):
    """A run of layers of the output, taken from one model or merged from several."""

    take: str | None = None
    """Take these layers from this expert (or `base`) unchanged."""
    layers: Mapping[str, LayerRanges]
    """Layers in the order in which they are stacked, counted from 0 in the model they come from:
    with `take` just those (`0-7`), else by input (`{base: 0-7, math: 4-11}`), as many of each."""
    steps: Steps | None = None
    """Use this chain in place of the recipe's."""
    stack: str | None = None
    """The stack that is meant where a model has several, such as `decoder.block`."""
    where: SkipJsonSchema[str] = Field("", exclude=True)


class Match(Part):
    """Which tensors a rule is about; all of what is given must hold."""

    name: str | None = None
    """Shell-style pattern of the tensor's name, such as `*.mlp.*`; upper and lower case differ."""
    layers: LayerRanges | None = None
    """Layers counted from 0: `3`, `0-4`, `0-4,7,30-` or a list; these match no tensor outside the
    layers. `outside` matches only such tensors. With `slices` these are layers of the output."""
    role: Annotated[str | None, WithJsonSchema({"enum": list(ROLES)})] = None
    """What the tensor does; `attention` covers `attention.q` and its like."""

    def matches(self, name: str, layer: int | None, role: str) -> bool:
        """Return whether a tensor is meant; its layer is None outside the layers."""
        if self.name is not None and not fnmatchcase(name, self.name):
            return False
        if self.layers is not None and not covers(self.layers, layer):
            return False
        return self.role is None or role == self.role or role.startswith(f"{self.role}.")


class Rule(Part):
    """What happens to the tensors that `match` describes; the last matching rule wins."""

    match: Match
    """A name pattern, or `{name, layers, role}`."""
    take: str | None = None
    """Take the tensor from this expert (or `base`) unchanged."""
    drop: Literal[True] | None = None
    """Leave the tensor out of the result."""
    steps: Steps | None = None
    """Use this chain in place of the recipe's."""
    set: Mapping[str, Any] | None = None
    """Parameters to change in whichever chain is in force: `density`, `magnitude.density`,
    `weight`."""
    where: SkipJsonSchema[str] = Field("", exclude=True)

    @property
    def action(self) -> str:
        """Which of `take`, `drop`, `steps` and `set` the rule has."""
        return next(key for key in ACTIONS if getattr(self, key) is not None)
