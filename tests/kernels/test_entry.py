"""Functions of single entries against the loops over blocks whose twins they are, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from mergekit_lite.kernels import entry
from mergekit_lite.kernels.codec import BF16, CODES, F16, F32, F64, LARGEST, WIDTHS, decode, encode
from mergekit_lite.kernels.codec import non_finite_stored as counted
from mergekit_lite.kernels.combine import MAX, MEAN, vote
from mergekit_lite.kernels.steps import drop_random, drop_top, keep_top
from tests.kernels.arrays import Floats, same

INF, NAN = float("inf"), float("nan")
EVERY_HALF = np.arange(1 << 16, dtype=np.uint16)
NUMPY = {BF16: np.uint16, F16: np.uint16, F32: np.float32, F64: np.float64}
EDGES = [
    0.0, -0.0, 1.0, -1.0, 0.5, 0.1, -0.1, 1e-45, -1e-45, 1e-38, -1e-38, 3e38, -3e38, INF, -INF, NAN,
    65504.0, 65519.99, 65520.0, -65520.0, 65536.0, 6.1e-5, 6.0e-8, 2.9e-8, 3.0e-8, 3.3895314e38,
]  # fmt: skip


def awkward() -> Floats:
    """Return edges and numbers of every exponent, NaN of both signs and subnormals included."""
    generator = np.random.default_rng(0)
    some = generator.integers(0, 1 << 32, 50_000, np.uint64).astype(np.uint32).view(np.float32)
    return np.concatenate([np.array(EDGES, np.float32), some])


def wide(code: int) -> NDArray[Any]:
    """Return awkward entries of a wide dtype."""
    with np.errstate(invalid="ignore"):  # signalling NaN become quiet
        return awkward().astype(NUMPY[code])


def middles(code: int) -> Floats:
    """Return every fp32 number halfway between two stored ones, and its neighbours."""
    stored = EVERY_HALF[: 1 << 15]
    edges = np.empty(len(stored), np.float32)
    decode(stored.view(np.uint8), 0, code, edges, len(stored))
    edges = edges[np.isfinite(edges)].astype(np.float64)
    halves = ((edges[1:] + edges[:-1]) / 2).astype(np.float32).view(np.uint32)[1:]
    around = np.concatenate([halves - np.uint32(1), halves, halves + np.uint32(1)])
    return np.concatenate([around, around | np.uint32(1 << 31)]).view(np.float32)


def mapped(function: Any, x: NDArray[Any], dtype: Any, *more: Any) -> NDArray[Any]:
    """Return a function of one entry of each array, applied in a compiled loop as in a chain."""
    dispatcher = function._dispatcher
    if not more:
        loop = _one_loop(dispatcher)
    else:
        loop = {1: _two_loop, 2: _three_loop}[len(more)](dispatcher)
    out = np.empty(len(x), dtype)
    loop(x, *more, out)
    return out


@cache
def _one_loop(f: Any) -> Callable[..., None]:
    @njit(error_model="numpy")
    def loop(x, out):  # type: ignore[no-untyped-def]
        for i in range(len(x)):
            out[i] = f(x[i])

    return loop  # type: ignore[no-any-return]


@cache
def _two_loop(f: Any) -> Callable[..., None]:
    @njit(error_model="numpy")
    def loop(x, a, out):  # type: ignore[no-untyped-def]
        for i in range(len(x)):
            out[i] = f(x[i], a[i])

    return loop  # type: ignore[no-any-return]


@cache
def _three_loop(f: Any) -> Callable[..., None]:
    @njit(error_model="numpy")
    def loop(x, a, b, out):  # type: ignore[no-untyped-def]
        for i in range(len(x)):
            out[i] = f(x[i], a[i], b[i])

    return loop  # type: ignore[no-any-return]


def by_name(names: dict[int, str], code: int) -> Any:
    return getattr(entry, names[code])


@pytest.mark.parametrize("code", [BF16, F16])
def test_every_16_bit_pattern_is_loaded_as_it_is_decoded(code: int) -> None:
    wanted = np.empty(1 << 16, np.float32)
    decode(EVERY_HALF.view(np.uint8), 0, code, wanted, 1 << 16)
    got = mapped(by_name(entry.LOADS, code), EVERY_HALF, np.float32)
    assert np.array_equal(got.view(np.uint32), wanted.view(np.uint32))  # and the NaN as they are


@pytest.mark.parametrize("code", [F32, F64])
def test_wide_entries_are_loaded_as_they_are_decoded(code: int) -> None:
    x = wide(code)
    if code == F64:
        x = np.concatenate([x, [1e300, -1e300, 1e-300, 1 + 2**-24, 1 + 3 * 2**-24, 3.4028236e38]])
    wanted = np.empty(len(x), np.float32)
    decode(x.view(np.uint8), 0, code, wanted, len(x))
    assert same(mapped(by_name(entry.LOADS, code), x, np.float32), wanted)


@pytest.mark.parametrize("code", CODES.values())
@pytest.mark.parametrize("data", ["awkward", "ties"])
def test_entries_are_stored_as_they_are_encoded(code: int, data: str) -> None:
    half = code if code in (BF16, F16) else BF16
    x = awkward() if data == "awkward" else middles(half)
    wanted = np.empty(len(x) * WIDTHS[code], np.uint8)
    encode(x.copy(), len(x), wanted, 0, code)
    got = mapped(by_name(entry.STORES, code), x, NUMPY[code])
    unsigned = {2: np.uint16, 4: np.uint32, 8: np.uint64}[WIDTHS[code]]
    assert np.array_equal(got.view(unsigned), wanted.view(unsigned))


def test_bf16_and_fp16_round_halves_to_even_by_hand() -> None:
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)], np.float32)
    assert mapped(entry.to_bf16, x, np.uint16).tolist() == [0x3F80, 0x3F82, 0xBF80]
    x = np.array([1 + 2**-11, 1 + 3 * 2**-11, 65519.0, 65520.0, 2**-25, 3 * 2**-25], np.float32)
    wanted = [0x3C00, 0x3C02, 0x7BFF, 0x7C00, 0, 2]
    assert mapped(entry.to_f16, x, np.uint16).tolist() == wanted


@pytest.mark.parametrize("code", CODES.values())
def test_the_limit_of_a_dtype_is_the_least_magnitude_it_cannot_hold(code: int) -> None:
    least = np.array([LARGEST[code] - 1, LARGEST[code]], np.uint32).view(np.float32)
    stored = mapped(by_name(entry.STORES, code), least, NUMPY[code])
    raw = stored.view(np.uint8)
    assert [counted(raw, at * WIDTHS[code], code, 1) for at in (0, 1)] == [0, 1]


@pytest.mark.parametrize("code", CODES.values())
def test_stored_entries_that_are_not_finite_are_counted_as_decoding_does(code: int) -> None:
    x = EVERY_HALF if code in (BF16, F16) else wide(code)
    if code == F64:
        x = np.concatenate([x, [1e300, 3.4028235e38, 3.4028236e38, -1e39]])
    out = np.empty(len(x), np.float32)
    raw = np.concatenate([np.full(8, 0xFF, np.uint8), x.view(np.uint8), np.full(8, 0xFF, np.uint8)])
    assert counted(raw, 8, code, len(x)) == decode(raw, 8, code, out, len(x)) > 0


CUTS = [(0x3F800000, 70), (0, 0), (0, 1 << 40), (0x7F800000, 0), (0x7F800000, 200), (1, 130)]


@pytest.mark.parametrize(("threshold", "until"), CUTS)
def test_a_cut_is_keep_top_and_a_band_drop_top_before_it(threshold: int, until: int) -> None:
    first = 64
    base = np.resize(awkward()[:200], 200).astype(np.float32)
    base[::7] = -1.0
    wanted = base.copy()
    keep_top(wanted, len(wanted), first, np.uint32(threshold), until)
    low = np.array([entry.limit_of(threshold, until, first + i) for i in range(200)], np.uint32)
    assert same(mapped(entry.cut, base, np.float32, low), wanted)
    for upper, reach in CUTS:
        wanted = base.copy()
        drop_top(wanted, len(wanted), first, np.uint32(upper), reach)
        keep_top(wanted, len(wanted), first, np.uint32(threshold), until)
        high = np.array([entry.limit_of(upper, reach, first + i) for i in range(200)], np.uint32)
        assert same(mapped(entry.band, base, np.float32, high, low), wanted)


@cache
def _drop_loop() -> Callable[..., None]:
    drop = entry.drop._dispatcher

    @njit(error_model="numpy")
    def loop(x, counter, salt, limit, factor, out):  # type: ignore[no-untyped-def]
        for i in range(len(x)):
            out[i] = drop(x[i], counter[i], salt, limit, factor)

    return loop  # type: ignore[no-any-return]


@pytest.mark.parametrize("keep", [0, 1, 1 << 31, 0xFFFFFFFF])
@pytest.mark.parametrize("first", [0, 12345, 7 << 32])
def test_a_drop_is_drop_random(keep: int, first: int) -> None:
    x, key = awkward()[:3000], (0x89ABCDEF, 0xFEDCBA98)
    wanted = x.copy()
    drop_random(wanted, len(x), first, *key, keep, np.float32(1.7))
    salt = (key[1] ^ ((first >> 32) * 0x9E3779B9)) & 0xFFFFFFFF
    counter = ((first + key[0] + np.arange(len(x))) & 0xFFFFFFFF).astype(np.uint32)
    got = np.empty_like(x)
    _drop_loop()(x, counter, np.uint32(salt), np.uint32(keep), np.float32(1.7), got)
    assert same(got, wanted)
    assert (got == 0).all() == (keep < 2)


def signed(values: list[float]) -> Floats:
    return np.array(values, np.float32)


def test_signs_of_shares_and_of_votes() -> None:
    x = signed([2.0, -3.0, 0.0, -0.0, NAN, INF, -INF, 1e-45, -1e-45])
    assert mapped(entry.sign_of, x, np.float32).tolist() == [1, -1, 0, 0, 0, 1, -1, 1, -1]
    for tie in (0.0, 1.0):
        wanted = [1, -1, tie, tie, 0, 1, -1, 1, -1]
        ties = np.full(len(x), tie, np.float32)
        assert mapped(entry.elected, x, np.float32, ties).tolist() == wanted


def test_the_larger_of_equal_magnitudes_is_the_first() -> None:
    best, p = signed([1.0, -2.0, 2.0, 0.0, 0.0, 3.0]), signed([2.0, 2.0, -3.0, -1.0, -0.0, INF])
    agrees = np.array([True, True, True, False, True, True])
    got = mapped(entry.larger, best, np.float32, p, agrees)
    assert same(got, signed([2.0, -2.0, -3.0, 0.0, 0.0, INF]))


def test_a_mean_without_mass_is_zero_and_a_base_without_change_stays() -> None:
    total, mass = signed([3.0, 3.0, INF, 1.0]), signed([2.0, 0.0, 0.0, -0.0])
    assert same(mapped(entry.mean, total, np.float32, mass), signed([1.5, 0, 0, 0]))
    base, y = signed([-0.0, -0.0, 1.0, NAN, INF]), signed([0.0, -0.0, 2.0, 0.0, -INF])
    assert same(mapped(entry.added, base, np.float32, y), signed([-0.0, -0.0, 3.0, NAN, NAN]))


@pytest.mark.parametrize("by_count", [False, True])
@pytest.mark.parametrize("aggregate", [MEAN, MAX])
def test_a_vote_of_two_from_single_entries_is_the_vote_over_a_block(
    by_count: bool, aggregate: int
) -> None:
    """All pairs of awkward numbers, composed here as `chain` composes them."""
    pairs = np.array(np.meshgrid(EDGES, EDGES), np.float32).reshape(2, -1)
    weights, n = signed([0.5, -2.0]), pairs.shape[1]
    out, ballot, mass = (np.empty(n, np.float32) for _ in range(3))
    vote(pairs, 2, n, weights, by_count, aggregate, True, False, out, ballot, mass)
    sign_of, elected, larger, mean = (
        getattr(entry, name)._dispatcher for name in ("sign_of", "elected", "larger", "mean")
    )
    zero, one, take_largest = entry.ZERO, entry.ONE, aggregate == MAX

    @njit(error_model="numpy")
    def loop(x, y, w, out):  # type: ignore[no-untyped-def]
        for i in range(len(x)):
            p1, p2 = w[0] * x[i], w[1] * y[i]
            s = elected(sign_of(p1) + sign_of(p2) if by_count else p1 + p2, one)
            k1, k2 = p1 * s > zero, p2 * s > zero
            if take_largest:
                out[i] = larger(larger(zero, p1, k1), p2, k2)
            else:
                total = (p1 if k1 else zero) + (p2 if k2 else zero)
                out[i] = mean(total, (abs(w[0]) if k1 else zero) + (abs(w[1]) if k2 else zero))

    got = np.empty(n, np.float32)
    loop(*pairs, weights, got)
    assert same(got, out)


def test_squares_are_added() -> None:
    x = np.arange(10, dtype=np.float32)
    assert mapped(entry.plus_square, np.full(10, 2, np.float32), np.float32, x).tolist() == [
        2 + i * i for i in range(10)
    ]
