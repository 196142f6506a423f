"""What a run tells while it works: in order, never more than there is, and nothing too early."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from mergekit_lite.engine.events import Event
from mergekit_lite.engine.journal import JOURNAL
from mergekit_lite.engine.local import TICK_SECONDS, execute
from mergekit_lite.engine.options import Options, Report
from mergekit_lite.errors import DataError
from mergekit_lite.plan.layout import job_bytes
from mergekit_lite.plan.sweeps import sweeps_of
from mergekit_lite.plan.types import Plan, Step
from mergekit_lite.sources import Model
from tests.engine.plans import each, plan_for, save_models
from tests.engine.test_chains import CHAINS

MAJORITY = Step("sign_consensus", {"zero_sign": "majority"})
SHAPES = {"a": (40, 33), "b": (1000,), "c": (17, 90), "d": (1200,), "e": (3,)}


def built(folder: Path, chain: str = "ties") -> tuple[Plan, dict[str, Model]]:
    models = save_models(folder, SHAPES)
    plan = plan_for(models, CHAINS[chain], shard_size=3100)
    assert len(plan.shards) == 4
    return plan, models


def watched(
    plan: Plan, models: Mapping[str, Model], folder: Path, **options: object
) -> tuple[Report, list[Event]]:
    seen: list[Event] = []
    report = execute(plan, models, folder, Options(**options), seen.append)  # type: ignore[arg-type]
    return report, seen


@pytest.mark.parametrize(
    ("chain", "threads", "jit"),
    [
        ("ties", 1, "1"),
        ("ties", 5, "1"),
        ("whole model", 2, "1"),
        ("ties", 1, "0"),
        ("linear", 2, "0"),
    ],
)
def test_a_run_is_told_from_start_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str, threads: int, jit: str
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    monkeypatch.setattr("mergekit_lite.engine.local.TICK_SECONDS", 0.0)
    plan, models = built(tmp_path, chain)
    report, seen = watched(plan, models, tmp_path / "out", threads=threads)
    seen = [event for event in seen if event.kind not in ("note", "sweep")]
    kinds = [event.kind for event in seen]
    assert (kinds[0], kinds[-1]) == ("start", "done")
    assert (kinds.count("start"), kinds.count("done"), kinds.count("shard")) == (1, 1, 4)
    assert set(kinds) <= {"start", "progress", "shard", "done"}
    total = sum(map(job_bytes, plan.jobs))
    assert {event.bytes_total for event in seen} == {total}
    assert {event.shards for event in seen} == {4}
    for counter in ("bytes_read", "bytes_written", "seconds"):
        values = [getattr(event, counter) for event in seen]
        assert values == sorted(values), counter
    assert seen[0].bytes_written == 0
    assert all(event.bytes_written <= total for event in seen)
    assert seen[-1].bytes_written == total
    assert seen[-1].bytes_read == report.bytes_read
    headers = sum(8 + len(shard.header) for shard in plan.shards)
    assert report.bytes_written == total + headers
    files = {(event.shard, event.name) for event in seen if event.kind == "shard"}
    assert files == {(n, shard.file) for n, shard in enumerate(plan.shards, 1)}
    rows = {(job.shard + 1, job.name) for job in plan.jobs}
    assert {(e.shard, e.name) for e in seen if e.kind == "progress"} <= rows


def test_progress_is_told_while_rows_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergekit_lite.engine.local.TICK_SECONDS", 0.0)
    plan, models = built(tmp_path)
    _, seen = watched(plan, models, tmp_path / "out", threads=1)
    assert "progress" in [event.kind for event in seen]


def test_progress_comes_a_few_times_a_second_whatever_the_number_of_rows(tmp_path: Path) -> None:
    models = save_models(tmp_path, {f"t{n}": (2,) for n in range(200)})
    _, seen = watched(plan_for(models, CHAINS["linear"]), models, tmp_path / "out", threads=2)
    told = [event for event in seen if event.kind == "progress"]
    assert len(told) <= 1 + seen[-1].seconds / TICK_SECONDS


def test_a_shard_is_told_once_it_is_safe(tmp_path: Path) -> None:
    plan, models = built(tmp_path)
    folder, told = tmp_path / "out", []

    def check(event: Event) -> None:
        if event.kind == "shard":
            lines = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
            (line,) = (line for line in lines if line.get("file") == event.name)
            assert (folder / event.name).stat().st_size == line["nbytes"]
            told.append(event.shard)

    execute(plan, models, folder, Options(threads=2), check)
    assert sorted(told) == [1, 2, 3, 4]


def test_a_resumed_run_counts_what_is_left(tmp_path: Path) -> None:
    plan, models = built(tmp_path)
    folder = tmp_path / "out"
    watched(plan, models, folder)
    for number in (0, 2):
        (folder / plan.shards[number].file).unlink()
    report, seen = watched(plan, models, folder)
    assert (seen[0].kind, seen[0].text) == ("note", "2 of 4 shards were done and are intact")
    assert seen[1].kind == "start"
    left = sum(job_bytes(job) for job in plan.jobs if job.shard in (0, 2))
    assert {event.bytes_total for event in seen[1:]} == {left}
    assert seen[-1].bytes_written == left
    assert seen[-1].bytes_read == report.bytes_read > 0
    assert {event.shard for event in seen if event.kind == "shard"} == {1, 3}


def test_a_run_that_is_complete_says_so(tmp_path: Path) -> None:
    plan, models = built(tmp_path)
    watched(plan, models, tmp_path / "out")
    _, seen = watched(plan, models, tmp_path / "out")
    assert [event.text for event in seen] == ["4 of 4 shards were done and are intact"]


@pytest.mark.parametrize(
    ("count", "told"), [(0, []), (1, ["compiling 1 kernel for"]), (3, ["compiling 3 kernels for"])]
)
def test_compiling_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, told: list[str]
) -> None:
    calls: list[tuple[int, bool]] = []
    monkeypatch.setattr("mergekit_lite.kernels.warm.missing", lambda kernels: kernels[:1] * count)
    monkeypatch.setattr(
        "mergekit_lite.kernels.warm.compile_kernels",
        lambda kernels, *, together: calls.append((len(kernels), together)),
    )
    plan, models = built(tmp_path)
    _, seen = watched(plan, models, tmp_path / "out")
    notes = [event.text for event in seen if event.kind == "note"]
    assert calls == [(count, True)] * len(told)
    assert [note.split(" this merge")[0] for note in notes] == told
    # Two compilers at once would take more memory than the run may.
    calls.clear()
    watched(plan, models, tmp_path / "little", max_memory=2 << 30)
    assert calls == [(count, False)] * len(told)
    monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    _, seen = watched(plan, models, tmp_path / "torch")
    assert not [event for event in seen if event.kind == "note"]


def test_a_failed_run_is_never_told_as_done(tmp_path: Path) -> None:
    plan, models = built(tmp_path)
    path = Path(models["code"].root)
    path.write_bytes(path.read_bytes()[:-100])
    seen: list[Event] = []
    with pytest.raises(DataError):
        execute(plan, models, tmp_path / "out", Options(threads=1), seen.append)
    assert seen[0].kind == "start"
    assert "done" not in [event.kind for event in seen]


def test_what_a_watcher_raises_ends_the_run(tmp_path: Path) -> None:
    plan, models = built(tmp_path)

    def fail(event: Event) -> None:
        raise ValueError(event.kind)

    with pytest.raises(ValueError, match="start"):
        execute(plan, models, tmp_path / "out", Options(threads=2), fail)
    report, _ = watched(plan, models, tmp_path / "out")
    assert report.resumed_shards == 0


def with_sizes(plan: Plan) -> Plan:
    """Return a plan of bf16 models whose reads say how many bytes they are."""
    jobs = []
    for job in plan.jobs:
        base, *reads = (
            replace(read, nbytes=2 * prod(job.shape)) for read in (job.base, *job.reads) if read
        )
        jobs.append(replace(job, base=base, reads=tuple(reads)))
    return replace(plan, jobs=tuple(jobs))


@pytest.mark.parametrize("jit", ["1", "0"])
def test_a_sweep_over_the_whole_model_tells_what_it_has_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jit: str
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    monkeypatch.setattr("mergekit_lite.engine.sweep.TICK_SECONDS", 0.0)
    monkeypatch.setattr(
        "mergekit_lite.plan.remembered.cache_folder", lambda part: tmp_path / "cache" / part
    )
    models = save_models(tmp_path, SHAPES)
    steps = [*each("magnitude", {"density": 0.2, "scope": "model"}), MAJORITY]
    plan = with_sizes(plan_for(models, steps))
    planned = sweeps_of(plan)
    _, seen = watched(plan, models, tmp_path / "out", threads=2)
    kinds = [event.kind for event in seen if event.kind != "note"]
    swept = [event for event in seen if event.kind == "sweep"]
    assert kinds.index("start") == len(swept)
    for sweep in planned:
        mine = [event for event in swept if event.text == sweep.ops[0]]
        read = [event.bytes_read for event in mine]
        assert read == sorted(read)
        assert (read[0], read[-1]) == (0, sweep.read_bytes)
        assert {event.bytes_total for event in mine} == {sweep.read_bytes}
        assert len(mine) > 2
        assert {event.name for event in mine[1:-1]} <= set(SHAPES)
    assert [sweep.ops for sweep in planned] == [("magnitude",), ("sign_consensus",)]
    _, again = watched(plan, models, tmp_path / "again", threads=2)
    assert "sweep" not in [event.kind for event in again]
