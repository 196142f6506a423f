"""What a recipe may say about a routed model that it assembles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema

from mergekit_lite.recipe.schema.bias import SwitchExperts
from mergekit_lite.recipe.schema.carve import Carve
from mergekit_lite.recipe.schema.dense import ToDense
from mergekit_lite.recipe.schema.fields import LayerRanges, Part, whole, whole_or_none
from mergekit_lite.recipe.schema.grow import Grow
from mergekit_lite.recipe.schema.merge import MergeExperts
from mergekit_lite.recipe.schema.prune import Prune

Target = Literal[
    "auto",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "glm4_moe",
    "dots1",
    "granitemoe",
    "granitemoeshared",
    "flex_olmo",
    "olmoe",
    "deepseek_v2",
    "deepseek_v3",
    "ernie4_5_moe",
    "hunyuan_v1_moe",
    "routed",
    "lora_moe",
]


class Noise(Part):
    """Noise that is added to the matrices of an expert, so that copies of one model part ways."""

    scale: Annotated[float, Field(ge=0)]
    """Its standard deviation: as a part of each matrix's own, or absolute."""
    relative: bool = True
    """Whether `scale` is a part of each matrix's own standard deviation."""


class Redraw(Part):
    """A part of an expert's neurons that is drawn anew, as in Drop-Upcycling."""

    ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Which part."""
    index_set: Literal["shared", "independent"] = "shared"
    """Whether all three matrices redraw the same neurons, as the paper says, or each its own, as
    the released code does."""


class MoeExpert(Part):
    """One routed expert: whose feed-forward layers it is made of, and what tokens it is for."""

    expert: str
    """`base` or the name of one of the recipe's experts; one name may come several times."""
    prompts: tuple[str, ...] = ()
    """Texts of the kind that it is for; gates are made from them."""
    negative: tuple[str, ...] = ()
    """Texts of the kind that it is not for; only gates that say so read them."""
    data: str | None = None
    """A file of texts of the kind that it is for, `.txt` or `.jsonl`."""
    rows: str | None = None
    """For adapters in a `lora_moe`: a safetensors file with the vector of PHATGOOSE of each module
    that the adapter changes, under the module's name."""
    noise: Noise | None = None
    """Noise on its matrices: `{scale: 0.01}` adds a hundredth of their standard deviation."""
    redraw: Redraw | None = None
    """Draw a part of its neurons anew from the spread of those that they replace, for training:
    `redraw: 0.5` is Drop-Upcycling."""
    residual_scale: float = 1.0
    """Factor of what it adds to the residual stream; its down projection is multiplied by it."""
    child: SkipJsonSchema[int | None] = None
    where: SkipJsonSchema[str] = Field("", exclude=True)


class Expand(Part):
    """Experts that are made of those that are there, as UpIT does, for training."""

    experts: Annotated[int, Field(ge=3), BeforeValidator(whole)]
    """How many there are in the end."""
    density: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Which part of a parent's change a child gets; the rest is dropped at random, as in DARE."""


class SharedExpert(Part):
    """The expert that every token passes, beside those that the router chooses."""

    expert: str
    """`none`, `zero` (there, but it adds nothing until it is trained), `base` or an expert."""
    residual_scale: float = 1.0
    """Factor of what it adds to the residual stream."""


class Routing(Part):
    """What routers do that no stock model can: for `target: routed`."""

    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    """Take the likeliest experts until their weights add up to more than this, however many they
    are, in place of `experts_per_token`."""
    null_experts: Annotated[int, Field(ge=0), BeforeValidator(whole)] = 0
    """Choices more that do nothing, with random rows of the router (AdaMoE); they count among
    `experts_per_token`, and the weights of the others add up to 1."""
    share: bool = False
    """Entries of `experts` that name the same model share one stored expert: each is a row of the
    router, with texts of its own, and the weights of rows that are chosen together add up."""
    skip: Annotated[float, Field(ge=0, lt=1)] | tuple[float, ...] | None = None
    """Leave out each choice whose weight is below this part of the first one's (NAEE): a number, or
    one for each layer of the model."""


class Gate(Part):
    """How the routers are made."""

    method: str
    """`random`, `zeros`, or a method that reads `prompts` or `data`."""
    params: Mapping[str, Any] = {}
    """Its parameters; they stand beside `method`."""


class Moe(Part):
    """A routed model whose experts are the feed-forward layers of dense models.

    All other weights are merged by the recipe's steps; without `steps` they are the base's.
    """

    target: Target = "auto"
    """The family of the result; `auto` takes the one that fits the base and most loaders know."""
    experts: tuple[MoeExpert, ...] = ()
    """The routed experts in order: names, or mappings; by default all experts of the recipe."""
    expand: Expand | None = None
    """Make more experts, so that `expand: 8` has 8: each is a random mixture of two whose changes
    are the least alike."""
    experts_per_token: Annotated[
        int | None, Field(ge=1, default=None), BeforeValidator(whole_or_none)
    ] = None
    """How many experts each token passes; by default 2, or 1 where there is but one. Slices count
    as experts: with `split: 4`, two experts are 8."""
    split: Annotated[int, Field(ge=1), BeforeValidator(whole)] = 1
    """Cut each expert into so many slices, which are experts of their own with one gate: as many
    smaller ones for later training, that together still say what the whole one says."""
    shared: SharedExpert | None = None
    """The shared expert; by default `zero` where the family cannot be without, else `none`."""
    layers: LayerRanges | None = None
    """Layers that are routed; the others keep one feed-forward layer. By default all."""
    outside: Literal["dense", "identical"] = "dense"
    """What the other layers are: one feed-forward layer (`dense`), in families that have such, or
    as many experts as the others have, all of them the base's own layer (`identical`), which in
    every family says what that layer says, and takes their disk and memory."""
    routing: Routing | None = None
    """For `target: routed`: routers with a threshold, with choices that do nothing, or skipping."""
    gate: Gate | None = None
    """How the routers are made: a method, or `{method: ..., ...}`. By default `ridge` where the
    experts have prompts or data; without these it must be said."""
    for_training: bool = False
    """The result is to be trained, so routers that send tokens anywhere are no mistake."""
    prune: Prune | None = None
    """Leaves experts of a routed base out, in place of assembling one."""
    merge: MergeExperts | None = None
    """Merges experts of a routed base with each other, in place of assembling one."""
    grow: Grow | None = None
    """Adds experts to a routed base, in place of assembling one."""
    dense: ToDense | None = None
    """Makes a dense model of a routed base, in place of assembling one."""
    bias: SwitchExperts | None = None
    """Switches experts of a routed base on or off, in place of assembling one."""
    carve: Carve | None = None
    """Cuts the feed-forward layers of the base into experts, in place of assembling models."""
    allow: tuple[str, ...] = ()
    """Settings in which an expert may differ from the base, such as `rope_theta`."""

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-able data that is read as the same again."""
        data: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True)
        if self.gate is not None:
            data["gate"] = {"method": self.gate.method, **self.gate.params}
        return data
