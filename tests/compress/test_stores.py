"""What every store method promises, and the checked examples of each."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.compress import Delta, scheme_named
from mergekit_lite.compress._types import Encoded, in_memory
from mergekit_lite.compress.schemes import masked
from mergekit_lite.compress.stores import Deltas, Joint, method_named, store_methods
from mergekit_lite.compress.survey import largest
from mergekit_lite.errors import RecipeError
from mergekit_lite.patches.row import Row, finished

NAME = "model.layers.0.mlp.up_proj.weight"
CASES: list[tuple[str, dict[str, Any]]] = [
    ("emr", {}),
    ("emr", {"dtype": "float32"}),
    ("tall_mask", {"mask_lambda": 0.3}),
    ("t_switch", {"keep": 0.4}),
    ("t_switch", {"keep": 0.4, "form": "masks"}),
    ("tsv_compress", {}),
    ("tsv_compress", {"fraction": 0.5, "exact": True, "dtype": "float32"}),
]


def packed(method: str, values: list[np.ndarray], **params: Any) -> Joint:
    """Return one tensor of several tasks, named a, b, c, compressed."""
    chosen = method_named(method)
    given = chosen.resolved(params)
    deltas = {}
    for task, value in zip("abcdefgh", values, strict=False):
        delta = Delta(NAME, value.shape, value.reshape(-1))
        if chosen.keep:
            found = largest(delta.values, max(int(given[chosen.keep] * value.size), 1))
            delta = replace(delta, found=found, kept=found.kept, ties=found.ties)
        deltas[task] = delta
    return chosen.encode(Deltas(deltas, len(deltas)), **given)


def decoded(
    joint: Joint, task: str, shape: tuple[int, ...], *, scale: float = 1.0, tile: int = 0
) -> np.ndarray | None:
    own = joint.tasks[task]
    if own is None:
        return None
    numbers = dict(own.numbers)
    if "scale" in numbers:
        numbers["scale"] *= scale
    parts = {**joint.shared, **own.parts}
    found, fetch = in_memory(Encoded(own.scheme, parts, numbers), NAME, shape)
    decoder = scheme_named(own.scheme).decoder(found, fetch)
    out = np.full(prod(shape), 9, np.float32)
    for first in range(0, out.size, tile or out.size):
        decoder.fill(first, out[first : first + (tile or out.size)])
    return out


def scale_of(method: str, joint: Joint, task: str, value: np.ndarray) -> float:
    """Return what decoded entries are multiplied by once the whole model is known."""
    own = joint.tasks[task]
    if own is None:
        return 1.0
    every = replace(own, parts={**joint.shared, **own.parts})
    row = Row("F32", value.shape, "0" * 32).told(own.scheme, "00000000", own.numbers)
    row.measure(value.reshape(-1), every, NAME)
    rescaled = method_named(method).rescaled
    return finished(task, {NAME: row}, rescaled=rescaled)[NAME].numbers.get("scale", 1.0)


@pytest.mark.parametrize(
    ("method", "number"),
    [(m.name, n) for m in store_methods().values() for n in range(len(m.vectors))],
)
def test_vectors(method: str, number: int) -> None:
    vector = method_named(method).vectors[number]
    values = [np.array(delta, np.float32) for delta in vector.deltas]
    joint = packed(method, values, **vector.params)
    for task, value, wanted in zip("abc", values, vector.expect, strict=False):
        scale = scale_of(method, joint, task, value) if method == "emr" else 1.0
        got = decoded(joint, task, value.shape, scale=scale)
        if wanted is None:
            assert got is None
            continue
        assert got is not None
        assert np.abs(got - np.array(wanted, np.float32).reshape(-1)).max() <= vector.tolerance


def test_emr_by_the_numbers_of_the_paper() -> None:
    """Vector, masks and scales of the three differences of the conformance vectors."""
    values = [np.array(v, np.float32) for v in method_named("emr").vectors[0].deltas]
    joint = packed("emr", values, dtype="float32")
    assert joint.shared["vector"].tolist() == [4, -5, -6, 0.5, 3, 2]
    for task, mask, scale, value in zip(
        "abc", ("110100", "010011", "101101"), (1.10526, 1.35, 0.82), values, strict=True
    ):
        own = joint.tasks[task]
        assert own is not None
        bits = np.unpackbits(own.parts["mask"], bitorder="little")[:6]
        assert "".join(map(str, bits)) == mask
        assert scale_of("emr", joint, task, value) == pytest.approx(scale, abs=1e-5)


def test_tall_masks_of_the_conformance_vectors() -> None:
    values = [np.array(v, np.float32) for v in method_named("tall_mask").vectors[0].deltas]
    joint = packed("tall_mask", values)
    for task, mask in zip("abc", ("110101", "010111", "101101"), strict=True):
        own = joint.tasks[task]
        assert own is not None
        bits = np.unpackbits(own.parts["mask"], bitorder="little")[:6]
        assert "".join(map(str, bits)) == mask


def test_every_method_has_vectors_and_words() -> None:
    assert set(store_methods()) == {"emr", "t_switch", "tall_mask", "tsv_compress"}
    for method in store_methods().values():
        assert method.vectors
        assert method.summary.endswith(".")
        assert all(parameter.doc for parameter in method.parameters.values())


@pytest.mark.parametrize(("method", "params"), CASES)
@settings(max_examples=20)
@given(
    shape=st.sampled_from([(1, 1), (1,), (7,), (3, 5), (17, 9), (2, 3, 4), (40, 33), (5, 1)]),
    tile=st.integers(1, 70),
    seed=st.integers(0, 1000),
    tasks=st.integers(1, 4),
    zeros=st.booleans(),
)
def test_tiles_are_the_whole(
    method: str,
    params: dict[str, Any],
    shape: tuple[int, ...],
    tile: int,
    seed: int,
    tasks: int,
    zeros: bool,
) -> None:
    generator = np.random.default_rng(seed)
    values = [generator.normal(size=shape, scale=1e-3).astype(np.float32) for _ in range(tasks)]
    for value in values:
        if zeros:
            value[np.abs(value) < 7e-4] = 0
        if not value.any():
            value.reshape(-1)[0] = 1
    before = [value.copy() for value in values]
    joint, again = (packed(method, values, **params) for _ in range(2))
    assert all(map(np.array_equal, values, before)), "the inputs are left as they were"
    for task in joint.tasks:
        whole = decoded(joint, task, shape)
        if whole is None:
            continue
        assert np.isfinite(whole).all()
        assert np.array_equal(whole, decoded(joint, task, shape, tile=tile))
        assert np.array_equal(whole, decoded(again, task, shape))


@pytest.mark.parametrize("method", ["emr", "tall_mask"])
@given(seed=st.integers(0, 1000))
def test_one_task_is_kept_as_it_is(method: str, seed: int) -> None:
    value = np.random.default_rng(seed).normal(size=(9, 5)).astype(np.float32)
    joint = packed(method, [value], dtype="float32")
    got = decoded(joint, "a", value.shape, scale=scale_of(method, joint, "a", value))
    assert np.array_equal(got, value.reshape(-1))


def test_half_precision_loses_one_part_in_two_thousand() -> None:
    value = np.random.default_rng(1).normal(size=1000, scale=3e-5).astype(np.float32)
    vector, unit = masked.vector_of(value, "float16")
    again = vector.astype(np.float32) * np.float32(unit)
    assert np.abs(again - value).max() <= 2**-11 * np.abs(value).max()
    assert not masked.vector_of(np.zeros(4, np.float32), "float16")[0].any()


def test_masked_entries_beyond_two_to_the_31() -> None:
    """Only what a range needs is read, wherever that lies."""
    shape, first = (3, 1 << 30), (1 << 31) + 12_345
    value = np.array([1.5, -2, 3, 4, -5], np.float16)
    own = Encoded("masked", {"mask": np.zeros(1, np.uint8)}, {"unit": 0.5, "scale": 2.0})
    small, _ = in_memory(
        replace(own, parts={"mask": np.zeros(1, np.uint8), "vector": value}), NAME, shape
    )
    size = prod(shape)
    parts = {
        "mask": replace(small.parts["mask"], shape=(size // 8,)),
        "vector": replace(small.parts["vector"], shape=(size,)),
    }
    asked = []

    def fetch(info: Any, start: int, out: np.ndarray) -> None:
        asked.append((info.name.rpartition(":")[2], start, out.size))
        raw = value.view(np.uint8) if "vector" in info.name else np.array([0b10110, 0], np.uint8)
        out[:] = raw[: out.size]

    out = np.empty(5, np.float32)
    scheme_named("masked").decoder(replace(small, parts=parts), fetch).fill(first, out)
    assert asked == [("vector", 2 * first, 10), ("mask", first // 8, 1)]
    # Entry `first` has bit 1 of its byte.
    assert first % 8 == 1
    assert out.tolist() == [1.5, -2, 0, 4, 0]


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("emr", {"dtype": "int8"}, "dtype"),
        ("tall_mask", {"mask_lambda": 0}, "mask_lambda"),
        ("tall_mask", {"mask_lambd": 1}, "`tall_mask` has no parameter `mask_lambd`"),
        ("t_switch", {"keep": 0.0}, "keep"),
        ("tsv_compress", {"fraction": 1.5}, "fraction"),
    ],
)
def test_parameters_are_checked(method: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        method_named(method).resolved(params)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(RecipeError, match="no store method `emrr`") as error:
        method_named("emrr")
    assert "emr" in error.value.problems[0].hint


def test_a_vector_of_another_size_is_refused() -> None:
    from mergekit_lite.errors import DataError

    values = [np.ones((4, 5), np.float32), np.full((4, 5), -2, np.float32)]
    joint = packed("emr", values)
    for less in ("vector", "mask"):
        own = joint.tasks["a"]
        assert own is not None
        parts = {**joint.shared, **own.parts}
        parts[less] = parts[less][:-1]
        found, fetch = in_memory(replace(own, parts=parts), NAME, (4, 5))
        with pytest.raises(DataError):
            scheme_named("masked").decoder(found, fetch)
