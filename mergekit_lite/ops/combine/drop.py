"""Leave a tensor out of the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergekit_lite.ops._spec import combine

if TYPE_CHECKING:
    from torch import Tensor


@combine(
    title="Drop a tensor",
    paper="none: nothing is computed",
    space="weight",
    experts=(0, None),
    structural=True,
)
def drop(inputs: Sequence[Tensor]) -> None:
    """Leave the tensor out of the output; meant for rules.

    The plan writes no row for such a tensor, so there is no result.
    """
