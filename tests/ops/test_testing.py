"""The shipped suite finds what it is there to find."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from mergekit_lite.ops import OpSpec, registry
from mergekit_lite.ops._spec import REGISTRY, Vector, combine, transform
from mergekit_lite.testing import conformance_cases

WAY = Vector([[[1.0, 2.0]]], [[1.0, 2.0]], source="by hand")
PAIR = Vector([[[1.0, 2.0]], [[1.0, 2.0]]], [[1.0, 2.0]], source="by hand")


@pytest.fixture(autouse=True)
def _leave_no_op_behind() -> Iterator[None]:
    before = dict(registry())
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


def failing(spec: OpSpec) -> set[str]:
    """Names of the CPU properties that do not hold."""
    found = set()
    for case in conformance_cases(spec):
        assert not case.gpu
        try:
            case()
        except AssertionError:
            found.add(case.name.split(": ")[1])
    return found


def spec_of(function: Callable[..., torch.Tensor]) -> OpSpec:
    return function.spec  # type: ignore[attr-defined, no-any-return]


def test_an_honest_op_passes() -> None:
    @transform(title="Same", paper="none", vectors=[WAY])
    def same(delta: torch.Tensor) -> torch.Tensor:
        """Return the delta."""
        return delta

    assert failing(spec_of(same)) == set()


def test_an_op_that_writes_into_its_input() -> None:
    @transform(title="Writes", paper="none", vectors=[WAY])
    def writes(delta: torch.Tensor) -> torch.Tensor:
        """Return the delta."""
        return delta.mul_(1.0).add_(delta.numel() == 36)

    assert "leaves inputs alone" in failing(spec_of(writes))


def test_an_op_that_looks_beyond_its_tile() -> None:
    @transform(title="Norm", paper="none", vectors=[Vector([[[0.0]]], [[0.0]], source="by hand")])
    def centred(delta: torch.Tensor) -> torch.Tensor:
        """Subtract the mean."""
        return delta - delta.sum() / max(1, delta.numel())

    assert "tiled equals whole" in failing(spec_of(centred))


def test_a_biased_random_op() -> None:
    @transform(title="Biased", paper="none", random=True, unbiased=True, vectors=[WAY])
    def halves(delta: torch.Tensor) -> torch.Tensor:
        """Halve one entry too many."""
        return torch.where(torch.arange(delta.numel()).reshape(delta.shape) < 100, delta, delta / 2)

    assert failing(spec_of(halves)) >= {"is unbiased", "mask depends on names alone"}


def test_a_combine_that_prefers_the_first() -> None:
    @combine(title="First", paper="none", commutative=True, idempotent=True, vectors=[PAIR])
    def first(inputs: list[torch.Tensor]) -> torch.Tensor:
        """Return the first and a constant."""
        return inputs[0] * len(inputs) / 2

    assert failing(spec_of(first)) == {"order of experts", "copies give one"}


def test_an_op_that_moves_the_base() -> None:
    @transform(title="Moves", paper="none", vectors=[WAY])
    def moves(delta: torch.Tensor) -> torch.Tensor:
        """Add one."""
        return delta + 1

    assert failing(spec_of(moves)) == {"vectors", "zero deltas give the base"}


def test_an_op_without_words_or_vectors() -> None:
    @transform(title="", paper="none")
    def silent(delta: torch.Tensor) -> torch.Tensor:
        """No full stop"""
        return delta

    assert "describes itself" in failing(spec_of(silent))


def test_an_op_that_overflows_and_forgets_its_shape() -> None:
    @transform(title="Squares", paper="none", vectors=[Vector([[[1.0]]], [[1.0]], source="hand")])
    def squares(delta: torch.Tensor) -> torch.Tensor:
        """Square."""
        return (delta * delta).flatten()

    assert failing(spec_of(squares)) >= {"stays finite", "takes every shape"}
