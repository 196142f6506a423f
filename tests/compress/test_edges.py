"""Differences that codecs could stumble over: equal entries, tiny tensors, less than one kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.compress.test_codecs import decoded, encoded, noise

CODECS: list[tuple[str, dict[str, Any]]] = [
    ("bitdelta", {}),
    ("bitdelta", {"scales": "row"}),
    ("topk_sparse", {"keep": 1.0}),
    ("intq", {"bits": 4, "group": 128}),
    ("tvq", {"bits": 2}),
    ("delta_come", {"ratio": 1.0}),
    ("lowrank_sparse", {"rank": 1}),
    ("svd", {"rank": 1}),
    ("ultradelta", {"keep": 1.0, "spread": 0.0}),
]


@pytest.mark.parametrize(("method", "params"), CODECS)
@pytest.mark.parametrize("value", [0.5, -3e-5])
def test_equal_entries_come_back(method: str, params: dict[str, Any], value: float) -> None:
    """Their deviation is 0, which only `compeft` has a use for."""
    values = np.full((40, 32), value, np.float32)
    found = encoded(method, values, **params)
    assert found is not None
    assert decoded(found, values.shape) == pytest.approx(values.reshape(-1), rel=5e-3)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 7), (3,), (2, 1, 2)])
@pytest.mark.parametrize(("method", "params"), CODECS)
def test_tensors_that_are_smaller_than_a_group(
    method: str, params: dict[str, Any], shape: tuple[int, ...]
) -> None:
    values = noise(shape, 4)
    found = encoded(method, values, **params)
    if found is None:  # stored whole
        assert len(shape) != 2 or values.size < 8
        return
    assert np.isfinite(decoded(found, shape)).all()


@pytest.mark.parametrize(
    ("method", "params", "least"),
    [
        ("topk_sparse", {"keep": 1e-6}, 1),
        ("lowrank_sparse", {"rank": 1, "keep": 1e-6}, 1),
        ("ultradelta", {"keep": 1e-6, "spread": 0.0}, 0),
    ],
)
def test_parts_of_less_than_one_entry(method: str, params: dict[str, Any], least: int) -> None:
    found = encoded(method, noise((20, 30)), **params)
    assert found is not None
    assert int(found.parts["index"].reshape(-1, 2)[:, 0].sum()) == least
    assert np.isfinite(decoded(found, (20, 30))).all()
