"""What a recipe may say about a dense base whose feed-forward layers are cut into experts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from mergekit_lite.recipe.schema.fields import Part, whole
from mergekit_lite.recipe.text import number

CarveMethod = Literal["cmoe", "coactivation", "gradient", "kmeans", "random", "contiguous"]
CarveRouter = Literal["ridge", "factor", "param", "random", "zeros", "exact"]


def _epsilon(value: Any) -> Any:
    """Return `auto`, or a power of two up to 1."""
    if value == "auto":
        return value
    found = number(value)
    small = found is not None and 2.0**-24 <= found <= 1
    if found is not None and small and float(found).hex().startswith("0x1.0000000000000"):
        return float(found)
    what = f"`epsilon: {value}` is neither `auto` nor a power of two between 2^-24 and 1"
    hint = "powers of two change no choice: write 0.0009765625, which is 2^-10"
    raise PydanticCustomError("epsilon", "{what}", {"what": what, "hint": hint})


class Carve(Part):
    """How the neurons of each feed-forward layer of the base are dealt out to experts."""

    experts: Annotated[int, Field(ge=2), BeforeValidator(whole)]
    """Slices that each layer is cut into, those that every token passes among them."""
    shared: Annotated[int, Field(ge=0), BeforeValidator(whole)] = 0
    """How many of them every token passes; they become one shared expert."""
    experts_per_token: Annotated[int, Field(ge=1), BeforeValidator(whole)]
    """How many of the others each token passes."""
    method: CarveMethod = "cmoe"
    """Which neurons go together: those that fire for the same tokens (`cmoe`), those that fire
    together most (`coactivation`, as MoEfication), those that the loss of the same tokens depends
    on (`gradient`, as LLaMA-MoE), those with alike gates (`kmeans`, as MoEfication too), any
    (`random`), or neighbours (`contiguous`)."""
    router: CarveRouter = "ridge"
    """What chooses: a regression on what each slice would say (`ridge`), one on which slices are
    nearest to their part of the whole (`factor`, as FactorLLM), the mean of a slice's gates
    (`param`), chance (`random`), nothing, where all slices are active (`zeros`), or the
    rule of CMoE itself (`exact`), which only `target: routed` has."""
    slice_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor of what chosen slices say. 1 is what they say in the dense layer; FactorLLM and
    LLaMA-MoE, which are trained with it, take the number of slices over that of chosen ones."""
    data: str | None = None
    """A file of texts of the kind that the model is for, `.txt` or `.jsonl`."""
    tokens: Annotated[int, Field(ge=1), BeforeValidator(whole)] = 16384
    """Most tokens of it that are run."""
    length: Annotated[int, Field(ge=1), BeforeValidator(whole)] = 512
    """Most tokens of a text."""
    penalty: Annotated[float, Field(gt=0)] = 0.01
    """Pull of `ridge` and `factor` towards 0, over the mean square of the inputs."""
    epsilon: Annotated[
        float | Literal["auto"],
        BeforeValidator(_epsilon),
        WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "number", "exclusiveMinimum": 0}]}),
    ] = "auto"
    """Power of two that multiplies the routers: the smaller, the nearer the weights of all chosen
    slices come to 1. `auto` brings the largest logit to about 0.01."""
