"""How the result is stored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from mergekit_lite.recipe.schema.fields import Bytes, Part, whole_or_none
from mergekit_lite.recipe.schema.quantize import Quantize

Dtype = Literal["base", "bfloat16", "float16", "float32"]


class LoraOutput(Part):
    """An adapter in place of a model, made of adapters alone."""

    method: Literal["cat", "svd", "core_space", "knots", "linear", "mean"] = "core_space"
    """How factors are merged: `cat` adds deltas up exactly, `svd` in the best way at a rank, `mean`
    is their mean, `core_space` and `knots` run any steps in the space that they span, `linear` adds
    the factors themselves, with cross terms, as PEFT does."""
    rank: Annotated[int | None, Field(ge=1), BeforeValidator(whole_or_none)] = None
    """Rank of the result; by default all ranks together, for `svd` the largest."""


class Output(Part):
    """How the result is stored."""

    dtype: Dtype = "base"
    """Storage dtype of the float tensors; `base` keeps that of each of the base's tensors."""
    shard_size: Bytes = 5_000_000_000
    """Largest shard, in bytes: `5GB`, `5GiB`, `500MB` or a number. A larger tensor has a shard of
    its own."""
    lora: LoraOutput | None = None
    """Write a PEFT adapter in place of a model; in float32 unless `dtype` names another."""
    quantize: Quantize | None = None
    """Write the linear layers as codes and scales of a scheme of compressed-tensors, such as
    `FP8_DYNAMIC`; in the same pass, without an unquantised checkpoint in between."""
