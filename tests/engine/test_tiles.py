"""Neither the tile, nor the number of workers, nor the memory cap changes a byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergekit_lite.plan.types import Step
from tests.engine.plans import each, expected, output, plan_for, run, same_bytes, save_models
from tests.engine.test_chains import CHAINS, MEAN

SHAPES = {"wide": (300, 513), "tall": (900, 96), "vector": (9000,), "scalar": ()}
MORE = {
    "rows, then dare by l1": [
        *each("breadcrumbs", {"density": 0.6, "gamma": 0.01}),
        *each("dare", {"density": 0.5, "rescale": "l1"}),
        MEAN,
    ],
    "slerp": [Step("slerp", {"t": 0.3})],
}
EVERY = {**CHAINS, **MORE}
IN_WEIGHTS = ("linear", "slerp")


def set_tile(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr("mergekit_lite.engine.local.tile_for", lambda plan, options: tile)


def build(folder: Path, chain: str, shapes: dict[str, tuple[int, ...]] = SHAPES):  # type: ignore[no-untyped-def]
    steps = EVERY[chain]
    names = ("math", "code") if chain == "slerp" else ("math", "code", "chat")
    models = save_models(folder, shapes, experts=names)
    return plan_for(models, steps, needs_base=steps[-1].op not in IN_WEIGHTS), models


@pytest.mark.parametrize("chain", EVERY)
def test_any_tile_and_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str
) -> None:
    plan, models = build(tmp_path, chain)
    run(plan, models, tmp_path / "first", threads=1)
    first = output(tmp_path / "first")
    for number, (tile, threads) in enumerate([(1 << 12, 1), (1 << 13, 2), (1 << 17, 3)]):
        set_tile(monkeypatch, tile)
        folder = tmp_path / str(number)
        run(plan, models, folder, threads=threads)
        assert same_bytes(output(folder), first), (tile, threads)


@pytest.mark.parametrize("chain", EVERY)
def test_any_tile_of_the_torch_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    plan, models = build(tmp_path, chain, {"wide": (30, 513), "tall": (200, 96), "odd": (9, 4097)})
    run(plan, models, tmp_path / "first", threads=1)
    first = output(tmp_path / "first")
    for tile, threads in [(1 << 12, 2), (1 << 13, 1)]:
        set_tile(monkeypatch, tile)
        folder = tmp_path / str(tile)
        run(plan, models, folder, threads=threads)
        assert same_bytes(output(folder), first), (tile, threads)


@pytest.mark.parametrize("chain", MORE)
@pytest.mark.parametrize("jit", ["0", "1"])
def test_small_tiles_give_the_bytes_of_the_specification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str, jit: str
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    set_tile(monkeypatch, 1 << 12)
    plan, models = build(tmp_path, chain)
    run(plan, models, tmp_path / "out", threads=2)
    assert same_bytes(output(tmp_path / "out"), expected(plan, models))


def test_the_memory_cap_makes_tiles_smaller_and_changes_nothing(tmp_path: Path) -> None:
    plan, models = build(tmp_path, "ties")
    run(plan, models, tmp_path / "free", threads=2)
    run(plan, models, tmp_path / "capped", threads=2, max_memory=171_000_000)
    assert same_bytes(output(tmp_path / "free"), output(tmp_path / "capped"))


@pytest.mark.parametrize("chain", ["ties", "dare by l1", "rows then trim", "slerp"])
def test_inputs_that_are_kept_between_sweeps_are_read_once_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str
) -> None:
    set_tile(monkeypatch, 1 << 12)
    plan, models = build(tmp_path, chain)
    stored = sum(info.nbytes for m in models.values() for info in m.header.tensors.values())
    if chain == "slerp":
        stored -= sum(info.nbytes for info in models["base"].header.tensors.values())
    kept = run(plan, models, tmp_path / "kept")
    assert kept.bytes_read == stored
    monkeypatch.setattr("mergekit_lite.engine.local.keep_for", lambda plan, options: 0)
    swept = run(plan, models, tmp_path / "swept")
    assert swept.bytes_read > 1.9 * stored
    assert same_bytes(output(tmp_path / "kept"), output(tmp_path / "swept"))
