"""What a plan costs, and what is refused for want of disk or memory."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mergekit_lite.errors import ResourceError
from mergekit_lite.ops import registry
from mergekit_lite.plan.build import build
from mergekit_lite.plan.estimate import Estimate, estimate, require, size_text
from mergekit_lite.plan.row_memory import (
    DEVICE_TILE_ENTRIES,
    LEAST_TILE,
    PROCESS_BYTES,
    TILE_ENTRIES,
    TORCH_BYTES,
    torch_bytes,
    whole_bytes,
)
from mergekit_lite.plan.types import Plan, Step
from tests.plan.hollow import llama, llama_config, recipe, write

EXPERTS = "base: base\nexperts: {math: {model: math}, code: {model: code}}\n"
SIZE = sum(2 * shape[0] * (shape[1] if shape[1:] else 1) for _, shape in llama().values())


def plan(root: Path, steps: str) -> Plan:
    return build(recipe(root, f"{EXPERTS}steps: {steps}"))


def test_bytes_are_those_of_the_tensors_read_and_of_the_files_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(root, "[ties]")
    cost = estimate(made)
    assert cost.read_bytes == 3 * SIZE
    assert estimate(plan(root, "[task_arithmetic]")).read_bytes == 3 * SIZE
    with monkeypatch.context() as patch:
        patch.setattr("mergekit_lite.plan.row_memory.KEPT_BYTES", 0)
        # Norms keep all their entries, so they alone need no sweep that ranks them first.
        norms = sum(2 * job.shape[0] for job in made.jobs if len(job.shape) == 1)
        assert estimate(made).read_bytes == 3 * (2 * SIZE - norms)
    assert cost.write_bytes == sum(shard.nbytes for shard in made.shards) > SIZE
    assert estimate(plan(root, "[linear]")).read_bytes == 2 * SIZE
    assert estimate(plan(root, "[{take: {source: math}}]")).read_bytes == SIZE
    assert cost.disk_free is None


def test_memory_grows_with_threads_and_inputs_not_with_the_model(root: Path) -> None:
    small = plan(root, "[linear]")
    one, four = estimate(small, threads=1), estimate(small, threads=4)
    tile = 4 * (2 + 2)
    assert four.peak_memory - one.peak_memory == 3 * TILE_ENTRIES * tile
    assert one.least_memory < one.peak_memory
    assert one.peak_memory - one.least_memory == (TILE_ENTRIES - LEAST_TILE) * tile
    for name in ("base", "math", "code"):
        write(root / name, llama(hidden=4096), llama_config(hidden=4096))
    large = plan(root, "[linear]")
    assert estimate(large, threads=1).peak_memory == one.peak_memory
    assert estimate(large, threads=1).seconds > estimate(small, threads=1).seconds


def test_copies_need_no_tiles(root: Path) -> None:
    cost = estimate(plan(root, "[{take: {source: math}}]"), threads=8)
    assert cost.peak_memory == cost.least_memory < PROCESS_BYTES + 1_000_000


def test_more_work_takes_longer(root: Path) -> None:
    for name in ("base", "math", "code"):
        write(root / name, llama(hidden=2048), llama_config(hidden=2048))
    chains = ("[{take: {source: math}}]", "[linear]", "[task_arithmetic]", "[ties]")
    seconds = [estimate(plan(root, steps), threads=1).seconds for steps in chains]
    assert seconds == sorted(set(seconds))
    assert estimate(plan(root, "[ties]"), threads=4).seconds < seconds[-1]


def test_a_cap_below_the_need_is_refused_with_the_need(root: Path) -> None:
    made = plan(root, "[ties]")
    with pytest.raises(ResourceError) as caught:
        estimate(made, threads=2, max_memory=100_000_000)
    text = str(caught.value)
    assert "may use 100.0 MB" in text
    least = int(text.split("--max-memory ")[1].split("MB")[0]) * 1_000_000
    cost = estimate(made, threads=2, max_memory=least)
    assert cost.least_memory <= cost.peak_memory <= least
    assert ResourceError.exit_code == 4


def test_a_full_disk_is_refused_with_need_and_have(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(root, "[linear]")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ResourceError, match=r"needs 3\d\.\d kB of disk, 1\.0 kB are free"):
        estimate(made, out=root / "not" / "yet" / "there")
    shown = estimate(made, out=root / "out", refuse=False)
    assert (shown.disk_free, shown.disk_needed) == (1000, shown.write_bytes)


def test_shards_of_an_interrupted_run_need_no_more_disk(root: Path) -> None:
    made = plan(root, "[linear]")
    partial = root / "out.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"x" * made.shards[0].nbytes)
    assert estimate(made, out=root / "out").disk_needed == 0


def test_both_shortages_are_told_at_once() -> None:
    cost = Estimate(1, 2, 3, 4, 5.0, least_memory=600, disk_needed=700)
    with pytest.raises(ResourceError) as caught:
        require(cost, max_memory=500, out=Path("out"))
    assert len(caught.value.problems) == 2


def test_a_plan_from_json_costs_the_same(root: Path) -> None:
    made = plan(root, "[{magnitude: {density: 0.5}}, task_arithmetic]")
    assert estimate(Plan.from_json(made.to_json()), threads=2) == estimate(made, threads=2)
    assert any(isinstance(step, Step) for step in made.jobs[0].steps)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (7_100_000_000_000, "7.1 TB")],
)
def test_sizes_are_written_in_powers_of_1000(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text


def test_ops_beyond_the_kernels_take_torch_into_memory(root: Path) -> None:
    fused, beyond = estimate(plan(root, "[ties]")), estimate(plan(root, "[pcb]"))
    assert beyond.least_memory - fused.least_memory > TORCH_BYTES - 50_000_000
    assert torch_bytes(plan(root, "[ties]")) == 0
    assert torch_bytes(plan(root, "[{take: {source: math}}]")) == 0
    assert torch_bytes(plan(root, "[{ties: {zero_sign: majority}}]")) == TORCH_BYTES


@pytest.mark.parametrize("op", ["sce", "arcee_fusion", "nuslerp: {unit: column}"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_kernels_do_by_tiles_takes_whole_tensors_in_torch(
    root: Path, monkeypatch: pytest.MonkeyPatch, device: str, op: str
) -> None:
    op = op if ":" in op else f"{op}: {{}}"
    made = plan(root, f"[{{{op}}}]")
    job = next(job for job in made.jobs if job.name.endswith("q_proj.weight"))
    large = replace(job, shape=(4096, 4096))
    in_kernels = whole_bytes(large, registry())
    assert torch_bytes(made) == 0
    if device == "cpu":
        monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    # Both inputs, the base and the result in fp32, and torch itself.
    whole = TORCH_BYTES + 4 * 4096 * 4096 * (2 + 2)
    assert whole_bytes(large, registry(), device) - in_kernels > whole
    assert torch_bytes(made, device) == TORCH_BYTES


def test_torch_and_its_copies_count_where_the_kernels_are_turned_off(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(root, "[ties]")
    kernels, gpu = estimate(made, threads=1), estimate(made, threads=1, device="cuda")
    monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    torch = estimate(made, threads=1)
    tile = 4 * (3 + 2)
    assert torch.least_memory - kernels.least_memory == TORCH_BYTES + 3 * tile * LEAST_TILE
    assert gpu.least_memory == torch.least_memory
    more = DEVICE_TILE_ENTRIES - TILE_ENTRIES
    assert gpu.peak_memory - torch.peak_memory == 4 * tile * more


def test_ops_beyond_the_kernels_take_their_time(root: Path) -> None:
    """A step in torch costs more than one of the kernels, and each of its passes counts."""

    def seconds(steps: str) -> float:
        made = plan(root, steps)
        jobs = tuple(replace(job, shape=(1 << 14, 1 << 14)) for job in made.jobs)
        return estimate(replace(made, jobs=jobs), threads=1).seconds

    entries = len(llama()) * 2**28 * 2
    fused = seconds("[task_arithmetic, consensus_mask]")
    claimed = seconds("[task_arithmetic, consensus_mask, consensus_mask]")
    # Three steps of one pass each, in place of the kernels' nothing, and the start of torch.
    assert claimed - fused == pytest.approx(2.0 + 3 * 1.0e-8 * entries, rel=1e-6)
    trim = "{magnitude: {density_1d: null}}"
    trimmed = seconds(f"[{trim}, task_arithmetic, consensus_mask, consensus_mask]")
    assert trimmed - claimed > 3.9 * 1.0e-8 * entries
