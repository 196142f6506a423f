"""Memory is a constant: what the cap makes of tiles and rows, and what a real process takes."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from mergekit_lite.engine import memory
from mergekit_lite.engine.memory import MemoryGate, keep_for, tile_for
from mergekit_lite.engine.options import Options
from mergekit_lite.plan.estimate import estimate
from mergekit_lite.plan.row_memory import KEPT_BYTES, LEAST_TILE, PROCESS_BYTES, TILE_ENTRIES
from mergekit_lite.plan.types import Job, Plan, Read, Step
from tests.engine.plans import each, plan_for, save_models
from tests.engine.processes import TELL_PEAK, Command, told_peak

SECONDS = 10.0
SUM = (Step("task_arithmetic"),)


def job(name: str, need: int = 0, experts: int = 3) -> Job:
    """Return a row that says by its shape how much memory it needs whole."""
    reads = tuple(Read(f"e{i}", name) for i in range(experts))
    return Job(name, "BF16", (need,), 0, 0, "merge", reads, Read("base", name), SUM)


def plan(*jobs: Job) -> Plan:
    return Plan(inputs={}, jobs=jobs, shards=(), seed=0, layers=1, dtype="BF16")


def cap(threads: int, tile: int, slots: int) -> int:
    """Return the least cap with which all workers' tiles, in fp32, fill half of the room."""
    return PROCESS_BYTES + 2 * threads * tile * 4 * slots


@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize("halvings", [0, 1, 4])
def test_a_tile_is_as_large_as_the_cap_allows(threads: int, halvings: int) -> None:
    """Slots: three experts, the base and the output; the row with most of them counts."""
    rows = plan(job("a", experts=1), job("b", experts=3), job("c", experts=2))
    tile = TILE_ENTRIES >> halvings
    limit = cap(threads, tile, 5)
    assert tile_for(rows, Options(threads=threads, max_memory=limit)) == tile
    assert tile_for(rows, Options(threads=threads, max_memory=limit - 1)) == tile // 2


def test_tiles_without_a_cap_and_with_a_hopeless_one() -> None:
    rows = plan(job("a"))
    assert tile_for(rows, Options(threads=1)) == TILE_ENTRIES
    assert tile_for(rows, Options(threads=1, max_memory=1 << 50)) == TILE_ENTRIES
    assert tile_for(rows, Options(threads=4, max_memory=1)) == LEAST_TILE
    assert tile_for(plan(), Options(threads=1, max_memory=PROCESS_BYTES)) == LEAST_TILE


class Row:
    """A thread that holds a row's memory until it is told to end."""

    def __init__(self, gate: MemoryGate, row: Job) -> None:
        self.inside, self.leave = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._hold, args=(gate, row), daemon=True)
        self.thread.start()

    def _hold(self, gate: MemoryGate, row: Job) -> None:
        with gate.room_for(row):
            self.inside.set()
            assert self.leave.wait(SECONDS)

    def runs(self) -> bool:
        return self.inside.wait(SECONDS)

    def waits(self) -> bool:
        return not self.inside.wait(0.05)

    def end(self) -> None:
        self.leave.set()
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> MemoryGate:
    """A gate with room for 100 bytes of whole tensors."""
    monkeypatch.setattr(memory, "whole_bytes", lambda row, specs, device: row.shape[0])
    return MemoryGate(plan(), Options(max_memory=PROCESS_BYTES + 100))


def test_rows_run_side_by_side_while_they_fit(gate: MemoryGate) -> None:
    first, second = Row(gate, job("a", 60)), Row(gate, job("b", 40))
    assert first.runs()
    assert second.runs()
    third = Row(gate, job("c", 1))
    assert third.waits()
    second.end()
    assert third.runs()
    first.end()
    third.end()


def test_a_row_waits_for_just_as_many_as_are_in_its_way(gate: MemoryGate) -> None:
    small = [Row(gate, job(str(n), 30)) for n in range(3)]
    assert all(row.runs() for row in small)
    large = Row(gate, job("large", 70))
    for row in small[:2]:
        assert large.waits()
        row.end()
    assert large.runs()
    small[2].end()
    large.end()


def test_a_row_that_never_fits_runs_alone(gate: MemoryGate) -> None:
    """The estimate has refused what cannot fit; what comes this far is run, not waited for."""
    huge = Row(gate, job("huge", 5000))
    assert huge.runs()
    other = Row(gate, job("other", 1))
    assert other.waits()
    huge.end()
    assert other.runs()
    again = Row(gate, job("again", 5000))
    assert again.waits()
    other.end()
    assert again.runs()
    again.end()


def test_rows_in_tiles_never_wait(gate: MemoryGate) -> None:
    huge = Row(gate, job("huge", 5000))
    assert huge.runs()
    tiled = Row(gate, job("tiled", 0))
    assert tiled.runs()
    tiled.end()
    huge.end()


def test_a_row_that_fails_gives_its_room_back(gate: MemoryGate) -> None:
    def fail() -> None:
        with gate.room_for(job("broken", 100)):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    after = Row(gate, job("after", 100))
    assert after.runs()
    after.end()


def test_without_a_cap_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "whole_bytes", lambda row, specs, device: row.shape[0])
    free = MemoryGate(plan(), Options())
    rows = [Row(free, job(str(n), 1 << 40)) for n in range(3)]
    assert all(row.runs() for row in rows)
    for row in rows:
        row.end()


def test_inputs_are_kept_only_where_the_cap_leaves_room(tmp_path: Path) -> None:
    models = save_models(tmp_path, {"w": (600, 1000)})
    steps = [*each("magnitude", {"density": 0.5}), Step("sign_consensus")]
    made = plan_for(models, steps)
    assert keep_for(made, Options(threads=2)) == KEPT_BYTES
    free = estimate(made, threads=2, refuse=False).peak_memory
    assert keep_for(made, Options(threads=2, max_memory=free)) == KEPT_BYTES
    assert keep_for(made, Options(threads=2, max_memory=free - 1)) == 0


RECIPE = """\
base: base.safetensors
experts:
  math: {model: math.safetensors, weight: 0.5}
  code: {model: code.safetensors, weight: 0.5}
  chat: {model: chat.safetensors, weight: 0.5}
steps:
  - ties: {density: 0.3}
"""
MEGABYTE = 1_000_000
SIZES = {"20 MB": (512, 2048), "200 MB": (4096, 2560)}


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with models of ten tensors each, 20 and 200 MB a file."""
    folders = {}
    for name, shape in SIZES.items():
        folder = folders[name] = tmp_path_factory.mktemp("size")
        save_models(folder, {f"model.layers.{n}.w": shape for n in range(10)})
        (folder / "recipe.yaml").write_text(RECIPE)
        nbytes = (folder / "base.safetensors").stat().st_size
        assert nbytes / MEGABYTE == pytest.approx(float(name.split()[0]), rel=0.1)
    peak(folders["20 MB"], "--fresh")  # compiles the kernels where nothing has yet
    return folders


def peak(folder: Path, *words: object) -> int:
    """Return the most resident memory in bytes that a merge of the folder's models took."""
    out = folder / "-".join(["out", *map(str, words)])
    words = ("recipe.yaml", "-o", out, "--threads", 2, *words)
    ended = Command(folder, words, cache=folder / "cache", before=TELL_PEAK).end()
    assert ended.code == 0, ended.said
    assert out.exists()
    return told_peak(ended.said)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(sizes: dict[str, Path]) -> None:
    small, large = (peak(folder) for folder in sizes.values())
    assert large < 450 * MEGABYTE
    assert large - small < 40 * MEGABYTE
    # Six inputs' tiles and what a ranking collects, beside the interpreter.
    assert large - PROCESS_BYTES < 100 * MEGABYTE


@pytest.mark.slow
def test_the_least_cap_that_is_asked_for_is_kept(sizes: dict[str, Path]) -> None:
    for folder in sizes.values():
        words = ("recipe.yaml", "-o", folder / "refused", "--threads", 2, "--max-memory", "1MB")
        refused = Command(folder, words, cache=folder / "cache").end()
        assert refused.code == 4
        found = re.search(r"at least --max-memory (\d+)MB", refused.said)
        assert found is not None
        megabytes = int(found[1])
        assert peak(folder, "--max-memory", f"{megabytes}MB") <= megabytes * MEGABYTE
