"""What a recipe may say, as frozen models.

The models hold a recipe after its short forms were written out (`shape.py`). Unknown keys and
chains of ops are checked before (`check.py`, `steps.py`), where the place of every key is known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    WithJsonSchema,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from mergekit_lite.checkpoint.names import ROLES as TENSOR_ROLES
from mergekit_lite.recipe.layers import FORMS, Ranges, covers, format_layers, parse_layers
from mergekit_lite.recipe.text import number

BASE = "base"  # the name by which rules and parameters call the base; no expert may bear it
ROLES = (*TENSOR_ROLES, "attention", "mlp")
"""Roles a rule can match; `attention` matches `attention.q` and its like."""

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": scale**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, scale in (("B", 1000), ("iB", 1024))
}
SIZE_FORMS = "write 5GB (5 x 10^9 bytes), 5GiB (5 x 2^30 bytes), 500MB or a plain number of bytes"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_size(value: Any) -> int:
    """Return the bytes that a size such as `5GB`, `5GiB`, `500MB` or `123456` stands for.

    Raises:
        ValueError: no positive number, or a unit that is not one of bytes.
    """
    match = _SIZE.fullmatch(str(value).strip())
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    known = match is not None and match[2].lower() in units and not isinstance(value, bool)
    size = Decimal(match[1]) * units[match[2].lower()] if match and known else Decimal("0.5")
    if size < 1 or size != int(size):
        raise ValueError(f"`{value}` is not a size in bytes; {SIZE_FORMS}")
    return int(size)


def _size(value: Any) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        what, _, hint = str(error).partition("; ")
        raise PydanticCustomError("size", "{what}", {"what": what, "hint": hint}) from None


def _layers(value: Any) -> Ranges:
    try:
        return parse_layers(value)
    except ValueError as error:
        raise PydanticCustomError("layers", "{what}", {"what": str(error), "hint": FORMS}) from None


def _whole(value: Any) -> Any:
    found = number(value)
    if found is None or not math.isfinite(found) or found != int(found):
        raise PydanticCustomError("int_type", "must be a whole number")
    return int(found)


def _whole_or_none(value: Any) -> Any:
    return None if value is None else _whole(value)


Weight = float | tuple[float, ...]
"""A number, or a gradient over depth: numbers interpolated from the first layer to the last."""


class _Model(BaseModel):
    # The texts under the fields reach the JSON schema when that is generated: reading them from
    # the source here would double the time this module takes to import.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class RecipeStep(_Model):
    """One op of a chain and its parameters, as the recipe gives them."""

    op: str
    """Name in the op registry."""
    params: Mapping[str, Any] = {}
    """Scalars, per-expert maps and gradients, not yet resolved."""
    where: SkipJsonSchema[str] = Field("", exclude=True)


Steps = tuple[RecipeStep, ...]


Scope = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class Expert(_Model):
    """One model that is merged into the base."""

    model: str | None = None
    """A fine-tuned model: a folder, a `.safetensors` file or `zoo:NAME`."""
    lora: str | None = None
    """A PEFT LoRA adapter of the base, read lazily."""
    weight: Weight | None = None
    """Its weight in the combine: a number, or a list interpolated over depth."""
    steps: Steps = ()
    """Transforms run on this expert before the recipe's shared chain."""
    rename: Mapping[str, str] = {}
    """Names of its tensors -> the base's names for them, where they differ by more than a prefix:
    `{"*.attn.*": "*.self_attn.*"}`; `*` and `?` keep what they stood for. After `regex:` a pattern
    is a regular expression and the replacement may hold `\\1`. The first that fits is applied."""
    scope: Scope = ()
    """Patterns or modules of the base in which this expert has a part, such as
    `model.language_model`; it leaves all else as in the base."""
    where: SkipJsonSchema[str] = Field("", exclude=True)

    @property
    def reference(self) -> str:
        """The model or adapter, whichever is given."""
        return self.model or self.lora or ""


_LAYERS_PATTERN = r"^\s*\d+(\s*-\s*\d*)?(\s*,\s*\d+(\s*-\s*\d*)?)*\s*$|^outside$"
LayerRanges = Annotated[
    Ranges,
    BeforeValidator(_layers),
    PlainSerializer(format_layers),
    WithJsonSchema(
        {
            "oneOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": _LAYERS_PATTERN},
                {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 1},
            ]
        }
    ),
]


class Slice(_Model):
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


class Match(_Model):
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


class Rule(_Model):
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


ACTIONS = ("take", "drop", "steps", "set")


class TokenSource(_Model):
    """A row to take for a token."""

    model: str | None = None
    """`base` or an expert's name."""
    token: str | None = None
    """The token of that model whose row is taken; by default the token of the same name."""
    token_id: Annotated[int, Field(ge=0)] | None = None
    """The number of the row, in place of `token`."""
    kind: Literal["zero", "model_token"] | None = None
    """`zero`: a row of zeros; `model_token`: the row that the other keys name."""


class TokenRule(_Model):
    """Where the rows of one token come from."""

    source: str | TokenSource | None = None
    """`base`, an expert's name, `zero`, or `{model, token}` or `{model, token_id}`: the row of
    every model that lacks the token."""
    force: bool = False
    """Use the source for the models that have the token, too: the result's row is the source's."""


class Tokenizer(_Model):
    """Whose tokenizer goes with the result, and where rows of single tokens come from."""

    source: str | None = None
    """`base`: the base's; `union`: the base's with the tokens that experts have and it lacks;
    an expert's name: that expert's, with its ids. Rows are matched by token."""
    tokens: Mapping[str, TokenRule] = {}
    """Token -> where its row comes from; a token that the tokenizer lacks is added to it."""
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None
    """The number of rows is raised to a multiple of this; new rows are the mean of the others."""


Dtype = Literal["base", "bfloat16", "float16", "float32"]


class LoraOutput(_Model):
    """An adapter in place of a model, made of adapters alone."""

    method: Literal["cat", "svd", "core_space", "knots", "linear", "mean"] = "core_space"
    """How factors are merged: `cat` adds deltas up exactly, `svd` in the best way at a rank, `mean`
    is their mean, `core_space` and `knots` run any steps in the space that they span, `linear` adds
    the factors themselves, with cross terms, as PEFT does."""
    rank: Annotated[int | None, Field(ge=1), BeforeValidator(_whole_or_none)] = None
    """Rank of the result; by default all ranks together, for `svd` the largest."""


class Output(_Model):
    """How the result is stored."""

    dtype: Dtype = "base"
    """Storage dtype of the float tensors; `base` keeps that of each of the base's tensors."""
    shard_size: Annotated[
        int,
        BeforeValidator(_size),
        WithJsonSchema(
            {
                "oneOf": [
                    {"type": "integer", "minimum": 1},
                    {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*([KMGTkmgt]?[iI]?[bB])?\s*$"},
                ]
            }
        ),
    ] = 5_000_000_000
    """Largest shard, in bytes: `5GB`, `5GiB`, `500MB` or a number. A larger tensor has a shard of
    its own."""
    lora: LoraOutput | None = None
    """Write a PEFT adapter in place of a model; in float32 unless `dtype` names another."""


class Recipe(_Model):
    """A checked recipe: everything a plan needs to know besides the models themselves."""

    schema_version: Literal[1] = 1
    """Version of the recipe language."""
    base: str
    """The model that is merged into: a folder, a `.safetensors` file or `zoo:NAME`."""
    experts: Mapping[str, Expert] = {}
    """The models that are merged, by the names that the rest of the recipe uses."""
    steps: Annotated[Steps, Field(min_length=1)]
    """The chain for every float tensor: transforms, then one combine, then posts."""
    slices: tuple[Slice, ...] = ()
    """The layers of the output from bottom to top, where they are not those of the base."""
    rules: tuple[Rule, ...] = ()
    """Exceptions from the chain, in order; a rule that matches no tensor is an error."""
    vocab: Literal["base_rows", "common_rows", "union"] | None = None
    """What to do where the vocabularies of base and experts differ. `base_rows`: the base's rows,
    an expert counts where it has the token; `common_rows`: only rows of tokens that all models
    have are merged, the others are the base's; `union`: also rows for tokens that the base
    lacks. Without it, differing vocabularies are an error."""
    tokenizer: Tokenizer = Tokenizer()
    """Whose tokenizer goes with the result."""
    chat_template: str | None = None
    """Whose chat template goes with the result: `base`, an expert's name, `auto` (what most inputs
    have), or the template itself."""
    head: Literal["tie", "untie"] | None = None
    """Whether the result's head is its embedding (`tie`) or weights of its own (`untie`), where
    base and experts differ; by default as in the base."""
    output: Output = Output()
    """How the result is stored."""
    seed: Annotated[int, Field(ge=0), BeforeValidator(_whole)] = 0
    """Seed of every random op; the same recipe with the same seed gives the same bytes."""
    compat: Literal["none", "mergekit"] = "none"
    """`mergekit` reproduces that tool's numbers where they differ from the papers'."""
    allow_missing: tuple[str, ...] = ()
    """Name patterns of base tensors that an expert may lack; it then leaves them as in the base."""
    scope: Scope = ()
    """The `scope` of every expert that has none of its own."""
    routers: Literal["base", "merge"] | None = None
    """What becomes of routers where a chain merges: `base` keeps the base's, which is the default;
    `merge` treats them like all else, as `compat: mergekit` does. A rule that names them wins."""
    extra: Literal["error", "drop"] = "error"
    """What to do with tensors of an expert that the base lacks."""

    stages: Mapping[str, Stage] = {}
    """Recipes by name whose results are models of this one, named `@NAME`; see below."""

    name: SkipJsonSchema[str] = Field("recipe", exclude=True)
    folder: SkipJsonSchema[Path] = Field(Path(), exclude=True)
    _places: dict[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)
    _notes: list[str] = PrivateAttr(default_factory=list)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was understood otherwise than one may think, each with its place."""
        return tuple(self._notes)

    def at(self, *path: str | int) -> str:
        """Return where a value stands (`recipe.yaml:14:9`), or its nearest parent's place.

        Args:
            path: keys and list indices from the top, such as `"rules", 2, "match"`.
        """
        while path and path not in self._places:
            path = path[:-1]
        return self._places.get(path, self.name)

    def plain(self) -> dict[str, Any]:
        """Return the recipe as JSON-able data that `load` accepts and reads as the same recipe."""
        data: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        data["steps"] = _written(data["steps"])
        for expert in data["experts"].values():
            for key in ("rename", "scope"):
                if not expert[key]:
                    del expert[key]
            if steps := _written(expert.pop("steps")):
                expert["steps"] = steps
        for key in ("slices", "scope"):
            if not data[key]:
                del data[key]
        for part in (*data.get("slices", ()), *data["rules"]):
            if "steps" in part:
                part["steps"] = _written(part["steps"])
        data.pop("stages")
        if self.stages:
            data["stages"] = {name: stage.plain() for name, stage in self.stages.items()}
        return data


class Stage(Recipe):
    """A recipe inside a recipe: its result is a model that the recipe, or another stage, uses."""

    keep: bool = False
    """Write the result as a checkpoint beside the output and keep it, before it is used."""
    named: SkipJsonSchema[bool] = Field(False, exclude=True)

    def plain(self) -> dict[str, Any]:
        """Return the stage as JSON-able data that `load` reads as the same stage."""
        data = super().plain()
        for key in ("schema_version", "tokenizer", "chat_template"):
            data.pop(key, None)
        if not self.named:
            data["output"].pop("dtype")
        return data


def _written(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{step["op"]: step["params"]} for step in steps]
