"""What every codec promises, and the checked examples of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.cli.compress import METHODS
from mergekit_lite.compress import Codec, Delta, Encoded, codec_named, registry, scheme_named
from mergekit_lite.compress._types import in_memory
from mergekit_lite.compress.survey import largest
from mergekit_lite.errors import DataError, RecipeError

CASES = [
    ("compeft", {"keep": 0.3}),
    ("compeft", {"keep": 0.3, "form": "masks", "scale": "l2"}),
    ("bitdelta", {}),
    ("bitdelta", {"scales": "row"}),
    ("topk_sparse", {"keep": 0.3}),
    ("svd", {"rank": 2}),
    ("svd", {"energy": 0.9, "dtype": "float32"}),
    ("intq", {"bits": 2, "group": 5}),
    ("intq", {"bits": 4}),
    ("intq", {"bits": 8, "group": 3}),
    ("tvq", {"bits": 3}),
    ("tvq", {"bits": 8}),
    ("lowrank_sparse", {"rank": 2, "keep": 0.1, "rounds": 2}),
    ("delta_come", {"ratio": 2.0, "group": 5}),
    ("ultradelta", {"keep": 0.4, "spread": 0.0, "bits": 3}),
]
NAME = "model.layers.0.mlp.up_proj.weight"


def encoded(
    method: str, values: np.ndarray, gram: np.ndarray | None = None, **params: Any
) -> Encoded | None:
    codec = codec_named(method)
    chosen = codec.resolved(params)
    found = None
    if codec.keep:
        found = largest(values.reshape(-1), max(int(chosen[codec.keep] * values.size), 1))
    kept, ties = (found.kept, found.ties) if found else (0, 0)
    delta = Delta(NAME, values.shape, values.reshape(-1), found, kept, ties, gram=gram)
    return codec.encode(compared(codec, delta, chosen), **chosen)


def compared(codec: Codec, delta: Delta, params: Mapping[str, Any]) -> Delta:
    """Return a difference with what its codec decides when there is no other."""
    facts = codec.compares.look(delta, params) if codec.compares else None
    if codec.compares is None or facts is None:
        return delta
    return replace(delta, facts=codec.compares.decide({delta.name: facts}, params)[delta.name])


def decoded(found: Encoded, shape: tuple[int, ...], tile: int = 0) -> np.ndarray:
    packed, fetch = in_memory(found, NAME, shape)
    decoder = scheme_named(found.scheme).decoder(packed, fetch)
    size = prod(shape)
    out = np.full(size, 9, np.float32)
    for first in range(0, size, tile or size):
        decoder.fill(first, out[first : first + (tile or size)])
    return out


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape, scale=1e-3).astype(np.float32)


@pytest.mark.parametrize(
    ("method", "number"), [(c.name, n) for c in registry().values() for n in range(len(c.vectors))]
)
def test_vectors(method: str, number: int) -> None:
    codec = codec_named(method)
    vector = codec.vectors[number]
    values = np.array(vector.delta, np.float32)
    params = codec.resolved(vector.params)
    found = None
    if codec.keep:
        found = largest(values.reshape(-1), int(params[codec.keep] * values.size))
    kept, ties = (found.kept, found.ties) if found else (0, 0)
    delta = Delta(vector.name, values.shape, values.reshape(-1), found, kept, ties)
    result = codec.encode(compared(codec, delta, params), **params)
    if vector.expect is None:
        assert result is None
        return
    assert result is not None
    wanted = np.array(vector.expect, np.float32).reshape(-1)
    got = decoded(result, values.shape)
    assert np.abs(got - wanted).max() <= vector.tolerance


def test_every_codec_has_vectors_and_words() -> None:
    assert set(registry()) == set(METHODS) - {"rtvq"}
    for codec in registry().values():
        assert codec.vectors
        assert codec.summary.endswith(".")
        assert all(parameter.doc for parameter in codec.parameters.values())


@pytest.mark.parametrize(("method", "params"), CASES)
@settings(max_examples=25)
@given(
    shape=st.sampled_from([(1, 1), (1,), (7,), (3, 5), (17, 9), (2, 3, 4), (40, 33), (5, 1)]),
    tile=st.integers(1, 70),
    seed=st.integers(0, 1000),
    zeros=st.booleans(),
)
def test_tiles_are_the_whole(
    method: str, params: dict[str, Any], shape: tuple[int, ...], tile: int, seed: int, zeros: bool
) -> None:
    values = noise(shape, seed)
    if zeros:
        values[np.abs(values) < 7e-4] = 0
    if not values.any():
        values.reshape(-1)[0] = 1
    before = values.copy()
    found = encoded(method, values, **params)
    assert np.array_equal(values, before), "the input is left as it was"
    if found is None:
        return
    whole = decoded(found, shape)
    assert np.isfinite(whole).all()
    assert np.array_equal(whole, decoded(found, shape, tile))
    again = encoded(method, values, **params)
    assert again is not None
    for name, part in found.parts.items():
        assert np.array_equal(part, again.parts[name])


@pytest.mark.parametrize(
    ("method", "params", "most"),
    [
        ("topk_sparse", {"keep": 1.0}, 1e-3),
        ("intq", {"bits": 8}, 0.01),
        ("svd", {"rank": 20, "dtype": "float32"}, 1e-5),
    ],
)
def test_fine_settings_lose_little(method: str, params: dict[str, Any], most: float) -> None:
    values = noise((60, 12), 3) @ noise((12, 60), 4) if method == "svd" else noise((60, 60), 3)
    found = encoded(method, values, **params)
    assert found is not None
    missed = decoded(found, values.shape) - values.reshape(-1)
    assert np.linalg.norm(missed) <= most * np.linalg.norm(values)


def test_topk_keeps_differences_of_16_bit_weights_exactly() -> None:
    base = (noise((64, 64), 1) * 20).view(np.uint32) & np.uint32(0xFFFF0000)
    tuned = (noise((64, 64), 2) * 20).view(np.uint32) & np.uint32(0xFFFF0000)
    values = tuned.view(np.float32) - base.view(np.float32)
    found = encoded("topk_sparse", values, keep=0.1)
    assert found is not None
    got = decoded(found, values.shape)
    kept = got != 0
    assert kept.sum() == 409
    assert np.abs(got - values.reshape(-1))[kept].max() <= 2**-11 * np.abs(values).max()


def test_compeft_takes_ties_by_flat_index() -> None:
    values = np.ones(200_000, np.float32)
    values[::2] = -1
    found = encoded("compeft", values, keep=0.4, scale="l2")
    assert found is not None
    got = decoded(found, values.shape, 50_000)
    assert np.array_equal(got[:80_000], values[:80_000])
    assert not got[80_000:].any()


def test_compeft_never_keeps_zeros() -> None:
    values = np.zeros(100, np.float32)
    values[[3, 50]] = 2, -1
    for form in ("rice", "masks"):
        found = encoded("compeft", values, keep=0.5, form=form)
        assert found is not None
        assert np.flatnonzero(decoded(found, values.shape)).tolist() == [3, 50]


def test_rows_that_are_shorter_than_a_group() -> None:
    values = noise((3, 5))
    one, other = encoded("intq", values, group=128), encoded("intq", values)
    assert one is not None
    assert other is not None
    assert one.parts["scales"].shape == (3, 1)
    assert np.array_equal(decoded(one, (3, 5)), decoded(other, (3, 5)))


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("compeft", {"keep": 0.0}, "keep"),
        ("compeft", {"keep": 1.5}, "keep"),
        ("compeft", {"kep": 0.5}, "`compeft` has no parameter `kep`"),
        ("bitdelta", {"scales": "column"}, "scales"),
        ("intq", {"bits": 3}, "bits"),
        ("svd", {"rank": 0}, "rank"),
    ],
)
def test_parameters_are_checked(method: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        codec_named(method).resolved(params)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(RecipeError, match="no codec `compef`") as error:
        codec_named("compef")
    assert "compeft" in error.value.problems[0].hint
    with pytest.raises(DataError, match="does not know"):
        scheme_named("other")


@pytest.mark.parametrize(("method", "params"), CASES)
def test_parts_that_do_not_fit_are_refused(method: str, params: dict[str, Any]) -> None:
    values = noise((40, 3)) @ noise((3, 33), 1)
    found = encoded(method, values, **params)
    assert found is not None
    for name in found.parts:
        if name == "values":
            continue
        less = {**found.parts, name: found.parts[name].reshape(-1)[:-1]}
        packed, fetch = in_memory(Encoded(found.scheme, less, found.numbers), NAME, (40, 33))
        with pytest.raises(DataError):
            scheme_named(found.scheme).decoder(packed, fetch)
        del less[name]
        packed, fetch = in_memory(Encoded(found.scheme, less, found.numbers), NAME, (40, 33))
        with pytest.raises(DataError):
            scheme_named(found.scheme).decoder(packed, fetch)
