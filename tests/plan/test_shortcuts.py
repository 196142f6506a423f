"""Results that are one of the inputs, and so are copied."""

from __future__ import annotations

import pytest

from mergekit_lite.ops import get
from mergekit_lite.plan.shortcuts import same_as
from mergekit_lite.plan.types import Read

W = Read("base", "w")
OTHER = Read("math", "w")


@pytest.mark.parametrize(
    ("normalize", "weights", "copied"),
    [
        (True, [0.3, 0.9], True),
        (False, [0.25, 0.75], True),
        (False, [0.5, 0.75], False),
        (False, [1.0, 1.0], False),
    ],
)
def test_a_mean_of_one_tensor_is_that_tensor(
    normalize: bool, weights: list[float], copied: bool
) -> None:
    params = {"normalize": normalize}
    assert same_as(get("linear"), params, [W, W], weights) == (W if copied else None)
    assert same_as(get("linear"), params, [W, OTHER], weights) is None


def test_an_arc_from_a_tensor_to_itself_is_that_tensor() -> None:
    for op in ("slerp", "karcher", "multislerp", "arcee_fusion"):
        assert same_as(get(op), {}, [W, W], [1.0, 1.0]) == W
        assert same_as(get(op), {}, [W, OTHER], [1.0, 1.0]) is None
