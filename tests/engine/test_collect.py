"""Statistics of the torch path, whatever tiles a tensor comes in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mergekit_lite.engine.collect import OrderCollector, TotalsCollector, count, keys_of
from mergekit_lite.engine.ranking import Ranking
from mergekit_lite.ops import registry
from mergekit_lite.ops._spec import REGISTRY, transform
from mergekit_lite.ops._statistics import Totals, order_cuts, shared_ranks, totals
from mergekit_lite.plan.types import Step
from tests.engine.memory_models import one_tensor
from tests.engine.plans import each, expected, output, plan_for, run, same_bytes, save_models

TILES = [4096, 4032, 8192, 5000, 1, 100_000]


def in_tiles(tensors: list[torch.Tensor], tile: int):  # type: ignore[no-untyped-def]
    for first in range(0, tensors[0].numel(), tile):
        yield [tensor[first : first + tile] for tensor in tensors], first


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("size", [10_007, 4096, 16])
def test_sums_do_not_depend_on_tiles(tile: int, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    tensors = [
        torch.randn(size, generator=generator) ** 3 * 10 ** torch.rand(size, generator=generator)
        for _ in range(3)
    ]
    if size // tile > 100:
        tensors = [tensor[:50] for tensor in tensors]
    collector = TotalsCollector(Totals(absolute=True, gram=True))
    for values, first in in_tiles(tensors, tile):
        collector.add(values, first)
    assert not collector.next()
    assert collector.answer() == totals(tensors)


@pytest.mark.parametrize("tile", [4096, 1000, 100_000])
@pytest.mark.parametrize("keep_ties", [False, True])
def test_cuts_do_not_depend_on_tiles(tile: int, keep_ties: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-9, 10, (12_345,), generator=generator).float() / 8
    ranks = (1, 5000, 0, 12_345, 99_999)
    collector = OrderCollector(ranks, len(values), keep_ties=keep_ties)
    again = True
    while again:
        for part, first in in_tiles([values], tile):
            collector.add(part, first)
        again = collector.next()
    assert collector.answer() == order_cuts(values, ranks, keep_ties=keep_ties)


@pytest.mark.parametrize("tile", [1000, 100_000])
@pytest.mark.parametrize("share", [1e-6, 0.3, 0.9, 0.999999, 1.0])
def test_a_share_of_the_squares_does_not_depend_on_tiles(tile: int, share: float) -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(9_345, generator=generator) ** 3
    values[::7] = values[:1335] * 1e-42  # numbers with no leading bit of their own
    values[3] = values[17]
    ranks = shared_ranks(values, share)
    for keep_ties in (False, True):
        collector = OrderCollector((1,), len(values), keep_ties=keep_ties, share=share)
        again = True
        while again:
            for part, first in in_tiles([values], tile):
                collector.add(part, first)
            again = collector.next()
        assert collector.answer() == order_cuts(values, ranks, keep_ties=keep_ties)


@pytest.mark.parametrize("signed", [False, True])
def test_zeros_that_are_not_shown_are_ranked_all_the_same(signed: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(900, generator=generator)
    shown = torch.cat([values, torch.tensor([0.0, -0.0])])
    every = torch.cat([shown, torch.zeros(700)])
    ranks = (1, 300, 460, 901, 1200, 1601, 5000)
    ranking = Ranking(ranks, len(every), signed=signed, zeros=700)
    again = True
    while again:
        ranking.add(count(keys_of(shown, signed=signed), ranking))
        again = ranking.next()
    expected = order_cuts(every, ranks, keep_ties=True, signed=signed)
    assert [ranking.threshold(slot) for slot in range(len(ranks))] == [
        c.threshold for c in expected
    ]


def test_an_op_that_needs_whole_tensors_gets_them(tmp_path: Path) -> None:
    """Larger than a tile: every input lies in memory at once, none over another."""
    registry()

    @transform(name="centre", title="Centre the columns", paper="none", reach="tensor")
    def centre(delta: torch.Tensor) -> torch.Tensor:
        """Subtract the column means."""
        assert delta.shape == (600, 400)
        return delta - delta.mean(0)

    try:
        models = save_models(tmp_path, {"w": (600, 400)})
        plan = plan_for(models, [*each("centre", {}), Step("task_arithmetic")])
        run(plan, models, tmp_path / "out")
        assert same_bytes(output(tmp_path / "out"), expected(plan, models))
    finally:
        del REGISTRY["centre"]


def test_a_third_partys_element_op_is_tiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry()
    sizes = []

    @transform(name="halve", title="Halve", paper="none")
    def halve(delta: torch.Tensor) -> torch.Tensor:
        """Halve every entry."""
        sizes.append(delta.numel())
        return delta / 2

    monkeypatch.setattr("mergekit_lite.engine.local.tile_for", lambda plan, options: 1 << 12)
    try:
        base = torch.zeros(10_000)
        models = one_tensor(base, {"e": base + 3})
        plan = plan_for(models, [*each("halve", {}, ["e"]), Step("task_arithmetic")], dtype="F32")
        run(plan, models, tmp_path / "out")
    finally:
        del REGISTRY["halve"]
    assert sizes == [4096, 4096, 1808]
    assert output(tmp_path / "out")["w"].unique().tolist() == [1.5]


@pytest.mark.parametrize("text", ["", '{"a', "[]", '{"a": 1}', "{}"])
def test_a_torn_file_of_whole_model_statistics_is_made_anew(tmp_path: Path, text: str) -> None:
    models = save_models(tmp_path, {"w": (30, 40), "v": (50,)})
    steps = [*each("magnitude", {"density": 0.2, "scope": "model"}), Step("sign_consensus")]
    plan = plan_for(models, steps)
    run(plan, models, tmp_path / "undisturbed")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "statistics.json").write_text(text)
    run(plan, models, tmp_path / "out")
    assert same_bytes(output(tmp_path / "out"), output(tmp_path / "undisturbed"))
