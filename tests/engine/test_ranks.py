"""The exact k-th largest magnitudes, against a sort, on data made to mislead the search."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergekit_lite.engine import ranks
from mergekit_lite.engine.cpu import find_statistics
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.program import compile_job
from mergekit_lite.engine.row import Row
from mergekit_lite.engine.tiles import TilePool
from mergekit_lite.ops._place import Cut
from mergekit_lite.ops._statistics import EVERY, order_cuts, shared_ranks
from mergekit_lite.ops.transform.breadcrumbs import band
from mergekit_lite.plan.row_memory import LEAST_RANK_ROOM as SMALL
from mergekit_lite.plan.types import Step
from tests.engine.memory_models import one_tensor
from tests.engine.plans import plan_for

Values = NDArray[np.float32]


def found(
    deltas: Sequence[Values], op: str, params: dict[str, object], *, tile: int = 1 << 14
) -> list[list[Cut]]:
    """Return the cuts of each expert's delta, as the engine finds them tile by tile."""
    names = [f"e{i}" for i in range(len(deltas))]
    tensors = {name: torch.from_numpy(d) for name, d in zip(names, deltas, strict=True)}
    models = one_tensor(torch.zeros(len(deltas[0])), tensors)
    steps = [*(Step(op, params, name) for name in names), Step("task_arithmetic")]
    plan = plan_for(models, steps)
    program = compile_job(plan.jobs[0], 0)
    assert program is not None
    wanted = len(next(iter(program.wanted.values())))
    readers = Readers(models)
    row = Row(plan.jobs[0], readers, TilePool(), tile=tile, weight_space=False)
    find_statistics(row, program, threading.Event())
    assert not program.wanted
    cuts = []
    for numbers in program.ints[:, 0, : 2 * wanted].tolist():
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        cuts.append([Cut(float(np.uint32(b).view(np.float32)), until) for b, until in pairs])
    return cuts


def check(deltas: Sequence[Values], density: float, *, gamma: float = -1, tile: int = 1 << 14):  # type: ignore[no-untyped-def]
    """Compare one rank (magnitude) or two (breadcrumbs) of every expert with a sort."""
    size = len(deltas[0])
    params: dict[str, object] = {"density": density, "density_1d": None}
    op, wanted = "magnitude", (max(1, int(density * size)),)
    if gamma >= 0:
        op, wanted = "breadcrumbs", band(density, gamma, size)
        params = {"density": density, "gamma": gamma, "unit": "tensor"}
    cuts = found(deltas, op, params, tile=tile)
    for delta, mine in zip(deltas, cuts, strict=True):
        assert mine == list(order_cuts(torch.from_numpy(delta), wanted))


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def continuous(n: int) -> Values:
    return (rng(1).standard_normal(n) ** 3).astype(np.float32)


def few_values(n: int) -> Values:
    """As fine-tuned bf16 weights differ: by a few steps of their dtype, and mostly not."""
    return rng(2).choice(np.array([0, 0, 0, 1, -1, 2, -4], np.float32) * 2**-10, n)


def many_shared_values(n: int) -> Values:
    """More frequent magnitudes than the search can name."""
    return (rng(3).integers(-60, 60, n) / 64).astype(np.float32)


def all_equal(n: int) -> Values:
    return rng(4).choice(np.array([0.125, -0.125], np.float32), n)


def all_zero(n: int) -> Values:
    return rng(5).choice(np.array([0.0, -0.0], np.float32), n)


def one_outlier(n: int) -> Values:
    values = np.full(n, 1e-3, np.float32)
    values[n - 1] = 1e30
    return values


def between_the_chunks(n: int) -> Values:
    """Large where an evenly spaced sample of 1024 entries in 16384 does not look."""
    values = (1e-6 * rng(6).random(n)).astype(np.float32)
    values[np.arange(n) % 16384 >= 1024] += 1
    return values


def in_the_chunks(n: int) -> Values:
    """Large only where the sample looks."""
    values = (1e-6 * rng(7).random(n)).astype(np.float32)
    values[np.arange(n) % 16384 < 1024] += 1
    return values


def sorted_up(n: int) -> Values:
    return np.sort(rng(8).random(n)).astype(np.float32)


def subnormal(n: int) -> Values:
    return (rng(9).integers(0, 5000, n)).astype(np.uint32).view(np.float32)


def one_bin(n: int) -> Values:
    """Different magnitudes that agree in their upper 16 bits."""
    return (0x3F800000 + rng(10).integers(0, 1 << 15, n)).astype(np.uint32).view(np.float32)


def low_rank(n: int) -> Values:
    """Rows differ in scale by far: neighbours resemble each other, as in an adapter's delta."""
    left, right = rng(11).standard_normal((-(-n // 576), 2)), rng(12).standard_normal((2, 576))
    return (left**3 @ right).astype(np.float32).flatten()[:n]


LAYOUTS: list[Callable[[int], Values]] = [
    continuous, few_values, many_shared_values, all_equal, all_zero, one_outlier,
    between_the_chunks, in_the_chunks, sorted_up, subnormal, one_bin,
    low_rank,
]  # fmt: skip
BIG = (1 << 18) + 77


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("density", [1e-6, 0.01, 0.2, 0.5, 0.999])
def test_one_rank_of_a_large_tensor(layout: Callable[[int], Values], density: float) -> None:
    check([layout(BIG)], density)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_two_ranks_of_a_large_tensor(layout: Callable[[int], Values]) -> None:
    check([layout(BIG)], 0.15, gamma=0.01)


@pytest.mark.parametrize("density", [0.1, 0.6])
def test_experts_of_all_kinds_in_one_sweep(density: float) -> None:
    check([layout(SMALL + 3000) for layout in LAYOUTS], density)


@pytest.mark.parametrize("size", [1, 2, 4096, SMALL - 1, SMALL, SMALL + 1, SMALL + 4097])
@pytest.mark.parametrize("layout", [continuous, few_values], ids=lambda f: f.__name__)
def test_sizes_around_the_bound_of_the_simple_search(
    size: int, layout: Callable[[int], Values]
) -> None:
    check([layout(size)], 0.3)


@pytest.mark.parametrize("tile", [1 << 12, 1 << 13, 1 << 17, 1 << 20])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_any_tile_gives_the_same_cut(layout: Callable[[int], Values], tile: int) -> None:
    check([layout(100_003)], 0.25, tile=tile)


@settings(max_examples=60)
@given(
    st.integers(1, 9000),
    st.integers(1, 6),
    st.sampled_from([0.0, 1e-4, 0.3, 0.999]),
    st.floats(0.001, 0.999),
    st.sampled_from([-1.0, 0.0, 0.01, 0.4]),
    st.integers(0, 1 << 16),
)
def test_random_mixtures(
    n: int, distinct: int, zeros: float, density: float, gamma: float, seed: int
) -> None:
    generator = rng(seed)
    pool = generator.standard_normal(distinct).astype(np.float32)
    values = generator.choice(pool, n) * (generator.random(n) >= zeros)
    check([values.astype(np.float32)], density, gamma=gamma, tile=4096)


def test_all_tied_entries_are_kept_on_request() -> None:
    values = few_values(BIG)
    params = {"density": 0.3, "density_1d": None, "tie_mode": "threshold"}
    (cuts,) = found([values], "magnitude", params)
    wanted = order_cuts(torch.from_numpy(values), [int(0.3 * BIG)], keep_ties=True)
    assert cuts == list(wanted)
    assert cuts[0].until == EVERY


def test_a_misleading_sample_falls_back_to_counting_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    count_all = ranks.histogram

    def counted(*arguments: object) -> None:
        calls.append(1)
        count_all(*arguments)

    monkeypatch.setattr(ranks, "histogram", counted)
    check([continuous(1 << 18)], 0.5)
    assert not calls, "an honest sample needs no histogram"
    check([low_rank(1 << 20)] * 3, 0.2, tile=1 << 17)
    assert not calls, "nor do rows of different scales"
    check([between_the_chunks(1 << 18)], 0.5)
    assert calls


def test_ranks_over_rows_that_are_wider_than_a_chunk() -> None:
    """Where an earlier step works on rows, only whole rows can be sampled."""
    values = continuous(40 * 9001).reshape(40, 9001)
    models = one_tensor(torch.zeros(40, 9001), {"e": torch.from_numpy(values)})
    steps = [
        Step("breadcrumbs", {"density": 0.6, "gamma": 0.01}, "e"),
        Step("magnitude", {"density": 0.2, "density_1d": None}, "e"),
        Step("task_arithmetic"),
    ]
    plan = plan_for(models, steps, dtype="F32")
    program = compile_job(plan.jobs[0], plan.seed)
    assert program is not None
    row = Row(plan.jobs[0], Readers(models), TilePool(), tile=8192, width=9001, weight_space=False)
    find_statistics(row, program, threading.Event())
    left = band_of(values)
    (wanted,) = order_cuts(left, [int(0.2 * left.numel())])
    bits, until = program.ints[0, 1, :2].tolist()
    assert (bits, until) == (int(np.float32(wanted.threshold).view(np.uint32)), wanted.until)


@pytest.mark.parametrize("op", ["magnitude", "norm_share"])
def test_the_last_tie_far_inside_a_tile_of_rows(op: str) -> None:
    """Tiles are looked at in pieces, which hold whole rows too where an earlier step needs them."""
    values = few_values(3000 * 96).reshape(3000, 96)
    models = one_tensor(torch.zeros(3000, 96), {"e": torch.from_numpy(values)})
    params: dict[str, object] = {"density": 0.47} if op == "magnitude" else {"share": 0.97}
    steps = [
        Step("breadcrumbs", {"density": 0.6, "gamma": 0.01}, "e"),
        Step(op, params, "e"),
        Step("task_arithmetic"),
    ]
    plan = plan_for(models, steps, dtype="F32")
    program = compile_job(plan.jobs[0], plan.seed)
    assert program is not None
    row = Row(plan.jobs[0], Readers(models), TilePool(), tile=1 << 19, width=96, weight_space=False)
    find_statistics(row, program, threading.Event())
    left = band_of(values)
    rank = int(0.47 * left.numel()) if op == "magnitude" else shared_ranks(left, 0.97)[0]
    (wanted,) = order_cuts(left, [rank])
    assert wanted.until > 1 << 17, "the case is none"
    bits, until = program.ints[0, 1, :2].tolist()
    assert (bits, until) == (int(np.float32(wanted.threshold).view(np.uint32)), wanted.until)


def band_of(values: Values) -> torch.Tensor:
    """Return what breadcrumbs leaves of each row, by a stable sort."""
    top, last = band(0.6, 0.01, values.shape[1])
    order = np.argsort(-np.abs(values), axis=1, kind="stable")
    left = np.zeros_like(values)
    kept = order[:, top:last]
    np.put_along_axis(left, kept, np.take_along_axis(values, kept, 1), 1)
    return torch.from_numpy(left)


def test_the_second_transform_ranks_what_the_first_has_left() -> None:
    """`dare` first: the rank of `magnitude` is over what was kept and scaled."""
    values = continuous(80_000)
    models = one_tensor(torch.zeros(len(values)), {"e": torch.from_numpy(values)})
    steps = [
        Step("dare", {"density": 0.5}, "e"),
        Step("magnitude", {"density": 0.2, "density_1d": None}, "e"),
        Step("task_arithmetic"),
    ]
    plan = plan_for(models, steps)
    program = compile_job(plan.jobs[0], plan.seed)
    assert program is not None
    row = Row(plan.jobs[0], Readers(models), TilePool(), tile=8192, weight_space=False)
    find_statistics(row, program, threading.Event())
    bits, until = program.ints[0, 1, :2].tolist()
    from mergekit_lite.ops._chain import apply_transform, placed
    from mergekit_lite.ops._place import Place

    place = placed(steps[0], Place("w", size=len(values)), plan.seed)
    params = Step("dare", {"density": 0.5, "rescale": "inv_density"}, "e")
    left = apply_transform(params, torch.from_numpy(values), place)
    (wanted,) = order_cuts(left, [int(0.2 * len(values))])
    assert (bits, until) == (int(np.float32(wanted.threshold).view(np.uint32)), wanted.until)
