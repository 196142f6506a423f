"""Pass one model's tensor on, scaled if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._spec import Doc, ExpertName, Vector, combine

if TYPE_CHECKING:
    from torch import Tensor


@combine(
    title="Passthrough",
    paper="none: a copy",
    space="weight",
    vectors=[
        Vector([[1, -2]], [1, -2], source="a copy, by hand"),
        Vector([[1, -2]], [0.5, -1], {"scale": 0.5}, source="scaled, by hand"),
    ],
)
def passthrough(
    inputs: Sequence[Tensor],
    *,
    source: Annotated[
        ExpertName | None, Doc("name of an expert, or `base`; may be left out if there is one")
    ] = None,
    scale: Annotated[float, Doc("multiplies the tensor; 1 copies its bytes")] = 1.0,
) -> Tensor:
    """Pass the tensor of one expert on, multiplied by a number.

    Order of operations: y = x * scale in fp32, scale rounded to fp32 first.

    Raises:
        RecipeError: several experts, and none is named.
    """
    if len(inputs) != 1:
        raise RecipeError(
            f"`passthrough` is given {len(inputs)} experts and cannot tell which to pass on",
            "passthrough",
            "name one: `passthrough: {source: NAME}`",
        )
    return inputs[0].float() * single(scale)
