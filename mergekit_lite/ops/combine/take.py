"""Take one model's tensor as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from mergekit_lite.ops._spec import Doc, ExpertName, Vector, combine

if TYPE_CHECKING:
    from torch import Tensor


@combine(
    title="Take one model's tensor",
    paper="none: a copy",
    space="weight",
    idempotent=True,
    vectors=[Vector([[1, -2]], [1, -2], {"source": "a"}, source="a copy, by hand")],
)
def take(
    inputs: Sequence[Tensor],
    *,
    source: Annotated[ExpertName, Doc("name of an expert, or `base`")],
) -> Tensor:
    """Take the tensor of one expert, or of the base, unchanged.

    The op is handed that one tensor alone.

    Order of operations: y = x.
    """
    return inputs[0].float()
