"""Which rows the kernels run, and that nothing else decides it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mergekit_lite.plan.fused import is_fused, is_known
from mergekit_lite.plan.types import Fusion, Job, Read, Step

DARE = Step("dare", {"density": 0.5}, "a")
MEAN = Step("task_arithmetic")
KNOWN = {
    "a sum": [MEAN, Step("scale", {"lambda": 0.5})],
    "an election of what is drawn": [DARE, Step("sign_consensus")],
    "one limit for all": [DARE, Step("consensus", {"mask_lambda": 0.4})],
    "a limit for each expert": [Step("consensus", {"mask_lambda": {"a": 0.4, "b": 0.6}})],
    "deviations": [Step("deviation", {}, "a"), MEAN],
    "a mask of claims": [MEAN, Step("consensus_mask")],
    "an arc": [Step("nuslerp", {"unit": "tensor"})],
    "an arc for each column": [Step("nuslerp", {"unit": "column"})],
    "statistics of stored inputs": [Step("sce")],
}
BEYOND = {
    "no combine": [DARE],
    "another combine": [Step("pcb")],
    "another post": [MEAN, Step("svc")],
    "two masks of claims": [MEAN, Step("consensus_mask"), Step("consensus_mask")],
    "an election by norms": [Step("sign_consensus", {"elect": "norm"})],
    "an election over the model": [Step("sign_consensus", {"zero_sign": "majority"})],
    "a number for each expert": [Step("nearswap", {"t": {"a": 0.4, "b": 0.6}})],
    "an arc of what is drawn": [DARE, Step("nuslerp", {"unit": "tensor"})],
    "columns of what is drawn": [DARE, Step("nuslerp", {"unit": "column"})],
    "statistics of what is drawn": [DARE, Step("sce")],
}


def row(steps: list[Step], fusion: Fusion | None = None) -> Job:
    reads = (Read("a", "w"), Read("b", "w"))
    job = Job("w", "BF16", (8, 8), 0, 0, "merge", reads, Read("base", "w"), tuple(steps))
    return replace(job, fusion=fusion)


@pytest.mark.parametrize("chain", KNOWN)
def test_what_the_kernels_know(chain: str) -> None:
    assert is_known(row(KNOWN[chain]))
    assert is_fused(row(KNOWN[chain]))


@pytest.mark.parametrize("chain", BEYOND)
def test_what_is_left_to_torch(chain: str) -> None:
    assert not is_known(row(BEYOND[chain]))


def test_factors_of_adapters_are_left_to_torch() -> None:
    fusion = Fusion("linear", "A", 4, "w", (8, 8))
    assert is_known(row([MEAN]))
    assert not is_known(row([MEAN], fusion))


def test_a_gpu_and_a_switch_leave_everything_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_fused(row([MEAN]), "cuda")
    monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    assert not is_fused(row([MEAN]))
