"""What must come out bit for bit whatever the chain: zeros, nothing, one number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mergekit_lite.plan.types import Job, Read, Step
from tests.engine.memory_models import memory_models, one_tensor
from tests.engine.plans import EXPERTS, each, finished, output, plan_for, run
from tests.engine.test_chains import CHAINS, WEIGHTS

DELTA_CHAINS = [name for name, steps in CHAINS.items() if steps[-1].op != "linear"]
JIT = pytest.mark.parametrize("jit", ["1", "0"])


def awkward_base(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A base with both zeros, subnormals and the largest numbers."""
    edges = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38, 6e-5, -6e-8])
    base = torch.cat([edges, torch.randn(5000, generator=torch.Generator().manual_seed(0))])
    return base.clamp(-6e4, 6e4).to(dtype) if dtype == torch.float16 else base.to(dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


@JIT
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("chain", DELTA_CHAINS)
def test_experts_equal_to_the_base_give_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str, jit: str, dtype: torch.dtype
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    base = awkward_base(dtype)
    models = one_tensor(base, dict.fromkeys(EXPERTS, base))
    stored = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}[dtype]
    run(plan_for(models, CHAINS[chain], dtype=stored), models, tmp_path / "out")
    assert torch.equal(bits(output(tmp_path / "out")["w"]), bits(base))


@JIT
def test_a_lone_expert_of_weight_one_comes_out_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jit: str
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    expert = awkward_base()
    models = one_tensor(expert.flip(0), {"e": expert})
    plan = plan_for(models, [Step("linear", {"weights": [1.0]})], needs_base=False)
    run(plan, models, tmp_path / "out")
    assert torch.equal(bits(output(tmp_path / "out")["w"]), bits(expert))


@JIT
@pytest.mark.parametrize("chain", [*CHAINS])
def test_tensors_without_entries_and_single_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str, jit: str
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    shapes = {"none": (0,), "no_rows": (0, 7), "no_columns": (5, 0), "number": (), "one": (1,)}
    tensors = {
        name: {key: torch.full(shape, value).bfloat16() for key, shape in shapes.items()}
        for name, value in [("base", 1.0), ("math", 1.5), ("code", 0.5), ("chat", 3.0)]
    }
    models = memory_models(tensors)
    in_weights = chain.startswith("linear")
    run(plan_for(models, CHAINS[chain], needs_base=not in_weights), models, tmp_path / "out")
    got = output(tmp_path / "out")
    assert {name: tuple(value.shape) for name, value in got.items()} == shapes
    # What is drawn depends on the name.
    drawn = "dare" in chain or "drop" in chain
    assert drawn or torch.equal(got["number"], got["one"][0])


def test_one_number_by_hand(tmp_path: Path) -> None:
    """0.5 * 0.5 - 0.25 * -0.5 + 1.5 * 2 = 3.375 above the base of 1."""
    values = {"base": 1.0, "math": 1.5, "code": 0.5, "chat": 3.0}
    models = memory_models({k: {"w": torch.tensor(v)} for k, v in values.items()})
    plan = plan_for(models, [Step("task_arithmetic", WEIGHTS)], dtype="F32")
    run(plan, models, tmp_path / "out")
    assert output(tmp_path / "out")["w"].item() == 4.375


@JIT
@pytest.mark.parametrize("space", ["delta", "weight"])
def test_a_read_that_leaves_the_tensor_as_it_is_counts_as_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: str, jit: str
) -> None:
    """Bit for bit as if the expert had stored a copy of the base, -0.0 included."""
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    base = awkward_base()
    other = torch.where(base == 0, base, base.float().clamp(-10, 10) * 1.25).to(base.dtype)
    models = one_tensor(base, {"a": other, "b": base})
    step = {
        "delta": Step("task_arithmetic", {"weights": [0.5, 0.25], "normalize": False, "lambda": 1}),
        "weight": Step("linear", {"weights": [0.5, 0.25], "normalize": True}),
    }[space]
    stored = {}
    for zero in (False, True):
        reads = (Read("a", "w"), Read("b", "" if zero else "w", zero=zero))
        job = Job("w", "BF16", tuple(base.shape), 0, 0, "merge", reads, Read("base", "w"), (step,))
        run(finished(models, [job], "BF16", 1 << 40, 0), models, tmp_path / f"out{zero}")
        stored[zero] = output(tmp_path / f"out{zero}")["w"]
    assert torch.equal(bits(stored[True]), bits(stored[False]))


@JIT
def test_a_ranking_without_any_magnitude_keeps_the_first_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jit: str
) -> None:
    """Every delta ties: exactly k entries change, the first ones."""
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    base = torch.zeros(10, 1000)
    models = one_tensor(base, {"e": base + 1})
    steps = [*each("magnitude", {"density": 0.3}, ["e"]), Step("task_arithmetic")]
    run(plan_for(models, steps, dtype="F32"), models, tmp_path / "out")
    wanted = (torch.arange(10_000) < 3000).float().reshape(10, 1000)
    assert torch.equal(output(tmp_path / "out")["w"], wanted)
