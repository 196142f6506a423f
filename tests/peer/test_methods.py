"""Every method and feature of mergekit 0.1.5, by both tools on the same models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.peer.conftest import RECIPES, Peer, Weights, recipes

pytestmark = pytest.mark.peer
Ours = Callable[..., Weights]


@pytest.mark.parametrize("name", recipes())
def test_the_same_in_fp32(name: str, peer: Peer, models: dict[str, Path], ours: Ours) -> None:
    """Entry by entry to 1e-5, beside the rounding of the largest entries of a tensor."""
    theirs = peer.weights(f"{name}.float32")
    text = (RECIPES / f"{name}.yml").read_text()
    mine = ours(text, models["float32"], "dtype=float32")
    assert mine.keys() == theirs.keys()
    for tensor, value in theirs.items():
        assert mine[tensor].dtype == value.dtype == torch.float32
        near = 1e-6 * float(value.abs().max())
        torch.testing.assert_close(
            mine[tensor], value, rtol=1e-5, atol=near, msg=lambda m, t=tensor: f"{t}: {m}"
        )


@pytest.mark.parametrize("name", recipes())
def test_in_bf16_never_farther_from_the_exact_result(
    name: str, peer: Peer, models: dict[str, Path], ours: Ours
) -> None:
    """The exact result is mergekit's own in fp64, from the same bf16 models."""
    theirs, exact = peer.weights(f"{name}.bfloat16"), peer.weights(f"{name}.exact")
    text = (RECIPES / f"{name}.yml").read_text()
    mine = ours(text, models["bfloat16"], "dtype=bfloat16")
    assert mine.keys() == theirs.keys()
    for tensor, value in exact.items():
        assert mine[tensor].dtype == theirs[tensor].dtype == torch.bfloat16
        far = (mine[tensor].double() - value).norm()
        theirs_far = (theirs[tensor].double() - value).norm()
        assert far <= theirs_far * (1 + 1e-9), f"{tensor}: {far} and mergekit {theirs_far}"
