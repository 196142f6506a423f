"""A third party's op that needs a calibration file."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from mergekit_lite.ops._spec import Doc, transform


@transform(title="Scale by importance", paper="none", calibration=True)
def by_importance(
    delta: Tensor, *, calibration: Tensor, file: Annotated[str, Doc("file with the importances")]
) -> Tensor:
    """Multiply every entry by its measured importance."""
    return delta.float() * calibration
