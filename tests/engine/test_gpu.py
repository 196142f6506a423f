"""The GPU gives the bytes of the CPU; and how tiles travel, on a device that is only late."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergekit_lite.engine import lanes
from mergekit_lite.engine.lanes import Buffers, HostLane, lane_for
from mergekit_lite.engine.shard import chosen_device
from mergekit_lite.engine.tiles import TilePool
from mergekit_lite.errors import ResourceError
from mergekit_lite.plan.types import Plan
from mergekit_lite.sources import Model
from tests.engine.plans import expected, output, plan_for, run, same_bytes, save_models
from tests.engine.test_tiles import EVERY, IN_WEIGHTS, set_tile

SHAPES = {"wide": (30, 513), "tall": (200, 96), "long": (20_000,), "scalar": (), "none": (0, 3)}


def build(folder: Path, chain: str, dtype: str = "BF16") -> tuple[Plan, dict[str, Model]]:
    steps = EVERY[chain]
    names = ("math", "code") if chain == "slerp" else ("math", "code", "chat")
    models = save_models(folder, SHAPES, experts=names)
    return plan_for(models, steps, dtype=dtype, needs_base=steps[-1].op not in IN_WEIGHTS), models


class LateLane(HostLane):
    """A device that takes its inputs and gives its results as late as it may.

    What was copied up is looked at again when the result arrives, and must not have been written
    over by then; a result is not in the host's memory before it is asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[Tensor, Tensor]] = []
        self.under_way: list[NDArray[np.uint8]] = []
        self.results = 0

    def working(self) -> AbstractContextManager[Any]:
        self.taken = []  # a tile, or a sweep, begins
        return nullcontext()

    def up(self, host: Tensor) -> Tensor:
        self.taken.append((host, host.clone()))
        return self.taken[-1][1].clone()

    def down(self, result: Tensor, host: NDArray[np.uint8]) -> Any:
        assert not any(np.shares_memory(host, other) for other in self.under_way), "written over"
        host[:] = 0xFF
        self.results += 1
        self.under_way.append(host)
        return result.clone(), host, self.taken

    def arrived(self, ticket: Any) -> None:
        result, host, taken = ticket
        self.under_way.pop(0)
        for memory, copy in taken:
            assert torch.equal(memory.view(torch.uint8), copy.view(torch.uint8)), "read over"
        super().down(result, host)


@pytest.mark.parametrize(
    "chain",
    [
        "linear",
        "ties",
        "dare by l1",
        "dare then trim",
        "breadcrumbs by row",
        "rows, then dare by l1",
        "slerp",
        "whole model",
    ],
)
def test_a_late_device_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str
) -> None:
    made: list[LateLane] = []
    monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    monkeypatch.setattr(
        lanes, "lane_for", lambda device, worker: made.append(LateLane()) or made[-1]
    )
    set_tile(monkeypatch, 1 << 12)
    plan, models = build(tmp_path, chain)
    run(plan, models, tmp_path / "late", threads=2)
    assert sum(lane.results for lane in made) > len(SHAPES), "the rows were not cut into tiles"
    monkeypatch.undo()
    monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    run(plan, models, tmp_path / "whole", threads=2)
    assert same_bytes(output(tmp_path / "late"), output(tmp_path / "whole"))


class OneSided(LateLane):
    """Reads the next tile over the one that is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = (self.sides[0], self.sides[0])


class OneBuffer(LateLane):
    """Gives the memory of a result away before it was written."""

    def buffer(self, nbytes: int) -> NDArray[np.uint8]:
        super().buffer(nbytes)
        return super().buffer(nbytes)


class Impatient(LateLane):
    """Does not wait for results."""

    def arrived(self, ticket: Any) -> None:
        return None


@pytest.mark.parametrize(
    ("kind", "noticed"),
    [(OneSided, "read over"), (OneBuffer, "written over"), (Impatient, "written over")],
)
def test_the_late_device_notices_what_it_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[LateLane], noticed: str
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    monkeypatch.setattr(lanes, "lane_for", lambda device, worker: kind())
    set_tile(monkeypatch, 1 << 12)
    plan, models = build(tmp_path, "linear")
    with pytest.raises(AssertionError, match=noticed):
        run(plan, models, tmp_path / "out", threads=1)


def test_buffers_take_turns_and_grow() -> None:
    buffers = Buffers(TilePool())
    first, second = buffers.next(10), buffers.next(20)
    assert (first.nbytes, second.nbytes) == (10, 20)
    assert not np.shares_memory(first, second)
    third = buffers.next(8)
    assert np.shares_memory(third, first)
    fourth = buffers.next(30)
    assert fourth.nbytes == 30
    assert not np.shares_memory(fourth, third)
    assert np.shares_memory(buffers.next(10), first)


def test_the_lane_of_the_cpu_copies_nothing_up() -> None:
    lane = lane_for("cpu", 3)
    assert isinstance(lane, HostLane)
    assert lane.sides[0] is not lane.sides[1]
    host = torch.arange(4.0)
    assert lane.up(host) is host
    out = lane.buffer(8)
    lane.arrived(lane.down(torch.tensor([[1.0, 2.0]]), out))
    assert out.view(np.float32).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize(
    ("asked", "wanted"),
    [("cpu", ("cpu", "cpu")), ("auto", ("cpu", "cuda")), ("cuda", ("", "cuda"))],
)
def test_the_device_that_is_chosen(
    monkeypatch: pytest.MonkeyPatch, asked: str, wanted: tuple[str, str], found: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    if wanted[found]:
        assert chosen_device(asked) == wanted[found]
        return
    with pytest.raises(ResourceError, match="no GPU was found") as caught:
        chosen_device(asked)
    assert "--device cpu" in caught.value.problems[0].hint


def test_a_run_on_a_gpu_that_is_not_there_leaves_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan, models = build(tmp_path, "linear")
    with pytest.raises(ResourceError, match="no GPU"):
        run(plan, models, tmp_path / "out", device="cuda")
    run(plan, models, tmp_path / "out", device="auto")
    assert same_bytes(output(tmp_path / "out"), expected(plan, models))


@pytest.fixture
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")


def on_both(folder: Path, plan: Plan, models: Mapping[str, Model], **options: object) -> None:
    """Require that the GPU and the CPU write the same bytes."""
    run(plan, models, folder / "cpu", **options)
    run(plan, models, folder / "cuda", device="cuda", **options)
    assert same_bytes(output(folder / "cuda"), output(folder / "cpu"))


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("chain", EVERY)
def test_a_gpu_gives_the_bytes_of_the_cpu(tmp_path: Path, chain: str) -> None:
    plan, models = build(tmp_path, chain)
    on_both(tmp_path, plan, models, threads=2)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("chain", EVERY)
def test_a_gpu_gives_them_in_small_tiles_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str
) -> None:
    set_tile(monkeypatch, 1 << 12)
    plan, models = build(tmp_path, chain)
    on_both(tmp_path, plan, models, threads=3)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_a_gpu_rounds_as_the_cpu_does(tmp_path: Path, dtype: str) -> None:
    plan, models = build(tmp_path, "ties", dtype)
    on_both(tmp_path, plan, models)
