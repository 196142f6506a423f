"""Every method and feature of mergekit 0.1.5, by both tools on the same models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from mergekit_lite import api
from mergekit_lite.plan.types import Plan
from tests.peer.conftest import RECIPES, Peer, Weights, recipes
from tests.peer.ties import tied

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
    """The exact result is mergekit's own in fp64, from the same bf16 models.

    Left out are entries that tie at the cut of a trim, where both tools choose freely. What
    mergekit leaves in fp32 is rounded first.
    """
    theirs, exact = peer.weights(f"{name}.bfloat16"), peer.weights(f"{name}.exact")
    text = (RECIPES / f"{name}.yml").read_text()
    mine = ours(text, models["bfloat16"], "dtype=bfloat16")
    free = tied(plan_of(text), models["bfloat16"])
    assert mine.keys() == theirs.keys()
    for tensor, value in exact.items():
        assert mine[tensor].dtype == torch.bfloat16
        counted = ~free[tensor] if tensor in free else torch.ones(value.shape, dtype=torch.bool)
        far = (mine[tensor].double() - value)[counted].norm()
        rounded = theirs[tensor].to(torch.bfloat16)
        theirs_far = (rounded.double() - value)[counted].norm()
        assert far <= theirs_far * (1 + 1e-9), f"{tensor}: {far} and mergekit {theirs_far}"


def plan_of(text: str) -> Plan:
    """Return the plan of a recipe whose models are in the working folder."""
    return api.plan(yaml.safe_load(text))
