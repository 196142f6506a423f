"""What a report says of the experts inside stages that are streamed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from mergekit_lite import api
from mergekit_lite.engine.events import Event
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.stage_parts import StageParts
from mergekit_lite.engine.supplies import supply_of
from mergekit_lite.errors import Interrupted
from mergekit_lite.plan.build import prepare
from mergekit_lite.plan.types import Read
from tests.engine.test_staged import CHAINS, F32, inner_of, models, run, staged

__all__ = ["models"]


def given(out: Path, stage: str = "") -> dict[str, tuple[object, ...]]:
    """Return what a report says of experts, of those inside a stage if one is named."""
    inputs = json.loads((out / "merge_report.json").read_text())["inputs"]
    keys = ("tensors_compared", "tensors_changed", "delta_norm")
    prefix = f"{stage}/" if stage else ""
    return {
        name.removeprefix(prefix): tuple(said[key] for key in keys)
        for name, said in inputs.items()
        if name.startswith(prefix) and (stage or "/" not in name) and "delta_norm" in said
    }


@pytest.mark.parametrize("chain", CHAINS)
def test_experts_of_a_stage_are_measured_as_in_a_run_of_their_own(
    models: Path, tmp_path: Path, chain: str
) -> None:
    inner = inner_of(CHAINS[chain])
    run(models, tmp_path / "one", inner + F32)
    alone = given(tmp_path / "one")
    assert set(alone) == {"math", "code"} - ({"code"} if chain == "weights" else set())
    # Read in two sweeps, twice in a row, and by two rows.
    outer = (
        "base: '@inner'\nexperts: {chat: chat, again: '@inner'}\nsteps: [{ties: {density: 0.3}}]\n"
    )
    for threads in (1, 3):
        run(models, tmp_path / "out", staged(inner, outer), threads=threads, overwrite=True)
        assert given(tmp_path / "out", "inner") == alone
    assert all(norm is None or norm > 1 for _, _, norm in alone.values())


def test_experts_of_a_stage_that_is_written_first_are_told_too(
    models: Path, tmp_path: Path
) -> None:
    inner = inner_of(CHAINS["fused"])
    outer = "base: '@inner'\nexperts: {chat: chat}\nsteps: [{ties: {density: 0.3}}]\n"
    run(models, tmp_path / "streamed", staged(inner, outer))
    wanted = given(tmp_path / "streamed", "inner")
    assert set(wanted) == {"math", "code"}
    for _ in range(2):  # the second run finds the result of the first
        run(models, tmp_path / "kept", staged(f"{inner}keep: true\n", outer), overwrite=True)
        assert given(tmp_path / "kept", "inner") == wanted


def test_a_stage_that_another_stage_reads_too_is_measured_once(
    models: Path, tmp_path: Path
) -> None:
    first = inner_of(CHAINS["row"])
    run(models, tmp_path / "one", first + F32)
    text = """base: base
experts: {left: '@second', right: '@inner', chat: chat}
steps: [{ties: {density: 0.3}}]
rules: [{match: '*.layers.0.*', take: right}]
stages:
  second:
    base: base
    experts: {first: '@inner', math: math}
    steps: [linear]
    rules: [{match: '*.layers.0.*', take: first}]
  inner:
""" + "".join(f"    {line}\n" for line in first.splitlines())
    run(models, tmp_path / "out", text)
    found = given(tmp_path / "out", "inner")
    assert found == given(tmp_path / "one")
    assert given(tmp_path / "out", "second")["math"][0] == 0


@pytest.mark.parametrize("step", [37, 64, 100, 9000, 5000 * 64])
def test_what_experts_gave_does_not_depend_on_the_ranges_read(models: Path, step: int) -> None:
    path = models / "ranges.yaml"
    outer = "base: '@inner'\nexperts: {chat: chat}\nsteps: [{ties: {density: 0.3}}]\n"
    path.write_text(staged(inner_of(CHAINS["row"]), outer))
    plan, found = prepare(api.load(path))
    name = "model.embed_tokens.weight"
    job = next(job for job in plan.jobs if job.name == name)
    readers = Readers(found, tile=4096, stages=StageParts(plan))
    assert readers.stages is not None
    supply = supply_of(Read("base", name), job, readers)
    assert supply is not None
    out = np.empty(5000 * 64, np.float32).view(np.uint8)
    supply.fill(64000, 1000, out[:4000])  # as a sample is taken
    assert readers.stages.of_row(name) == {}
    for _ in range(2):
        for first in range(0, 5000 * 64, step):
            count = min(step, 5000 * 64 - first)
            supply.fill(first, count, out[: 4 * count])
    delta = load_file(models / "math/model.safetensors")[name].float()
    delta -= load_file(models / "base/model.safetensors")[name].float()
    part = readers.stages.of_row(name)["inner/math"]
    assert (part.matched, part.measured, part.changed) == (1, 1, 1)
    assert part.squares == pytest.approx(float(delta.double().square().sum()), rel=1e-6)
    readers.close()


def test_an_interruption_changes_nothing_of_it(models: Path, tmp_path: Path) -> None:
    outer = "base: '@inner'\nexperts: {chat: chat}\nsteps: [{ties: {density: 0.3}}]\n"
    text = staged(inner_of(CHAINS["fused"]), f"{outer}output: {{shard_size: 30kB}}\n")
    run(models, tmp_path / "whole", text)
    path = models / "whole.yaml"

    def stop(event: Event) -> None:
        if event.kind == "shard" and event.shard == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        api.run(path, tmp_path / "out", emit=stop, threads=1)
    assert api.run(path, tmp_path / "out").resumed_shards >= 2
    assert given(tmp_path / "out", "inner") == given(tmp_path / "whole", "inner")
