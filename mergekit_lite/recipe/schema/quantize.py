"""How the result is quantised."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from mergekit_lite.recipe.schema.fields import Part, Scope, whole_or_none


class Quantize(Part):
    """Codes and scales in place of the floats of linear layers, written as they are computed."""

    scheme: Literal[
        "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "W8A8", "W8A16", "W4A16", "NVFP4A16", "MXFP4A16"
    ]
    """Scheme of compressed-tensors, of those that need no data."""
    ignore: Scope = ()
    """Modules that stay as they are, beside the head, embeddings, norms and routers, which always
    do: names with `*`, or `re:` and a pattern."""
    group_size: Annotated[int | None, Field(ge=0), BeforeValidator(whole_or_none)] = None
    """Columns that share a scale, for `W8A16` and `W4A16`: by default 128; 0 for whole rows."""
    scales: Literal["max", "mse"] = "max"
    """`max` scales the largest magnitude to the largest code; `mse` looks for the scale of least
    squared error, for schemes of integers."""
