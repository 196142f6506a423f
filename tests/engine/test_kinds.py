"""Which kernels a run wants, and that loops of their own give the bytes of the general ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergekit_lite.checkpoint import Coded
from mergekit_lite.checkpoint.lora import LoraFactors
from mergekit_lite.engine import brackets, cpu, kinds, totals
from mergekit_lite.engine.kinds import FEW, wanted_kernels
from mergekit_lite.errors import DataError
from mergekit_lite.kernels import warm
from mergekit_lite.kernels._jit import KERNELS, Kernel
from mergekit_lite.kernels.dequantise import dequantise_columns, dequantise_rows
from mergekit_lite.kernels.lora import low_rank_tile
from mergekit_lite.kernels.order import magnitudes_of_tile, nth_equal, refine, scan_tile, squares
from mergekit_lite.kernels.sums import gram_tile, kept_tile
from mergekit_lite.kernels.tile import merge_tile
from mergekit_lite.plan.types import Job, Plan, Read, Step
from mergekit_lite.sources import Model
from tests.engine.memory_models import memory_models, one_tensor
from tests.engine.plans import each, finished, output, plan_for, run, same_bytes, save_models
from tests.engine.test_ranks import BIG, LAYOUTS, Values, check

# Other tests merge bf16: what is compiled here is not what they are to find.
EXPERTS = ("a", "b")
WEIGHTS = {"weights": [0.5, -1.25]}
MEAN = Step("sign_consensus", WEIGHTS)
SHAPES = {"large": (301, 513), "wide": (9, 77), "number": ()}
TIES = [*each("magnitude", {"density": 0.2, "density_1d": None}, EXPERTS), MEAN]
BAND = {"density": 0.2, "gamma": 0.05}
CHAINS = {
    "linear": [Step("linear", WEIGHTS)],
    "slerp": [Step("slerp", {"t": 0.3})],
    "task arithmetic": [Step("task_arithmetic", {**WEIGHTS, "lambda": 0.3})],
    "ties": [*TIES, Step("scale", {"lambda": 1.3})],
    "dare ties": [*each("dare", {"density": 0.3}, EXPERTS), MEAN],
    "dare by l1, then a trim": [
        *each("dare", {"density": 0.5, "rescale": "l1"}, EXPERTS),
        *TIES,
    ],
    "masked": [*TIES, Step("consensus_mask"), Step("scale", {"lambda": 1.3})],
    "by deviation": [*each("deviation", {"spare_1d": False}, EXPERTS), MEAN],
    "breadcrumbs": [*each("breadcrumbs", {**BAND, "unit": "tensor"}, EXPERTS), MEAN],
}
IN_WEIGHTS = ("linear", "slerp")
BY_ROW = [*each("breadcrumbs", BAND, EXPERTS), MEAN]


def plan_of(models: Mapping[str, Model], steps: Sequence[Step]) -> Plan:
    return plan_for(models, steps, dtype="F16", needs_base=steps[-1].op not in IN_WEIGHTS)


def small(steps: Sequence[Step], shape: tuple[int, ...] = (4, 4)) -> tuple[Plan, dict[str, Model]]:
    """Return a plan with one row."""
    models = one_tensor(torch.zeros(shape).half(), dict.fromkeys(EXPERTS, torch.ones(shape).half()))
    return plan_of(models, steps), models


Compiled = Callable[[Collection[Kernel]], None]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """A function that says which kernels are compiled, whatever lies on the disk."""

    def only(there: Collection[Kernel]) -> None:
        monkeypatch.setattr(Kernel, "is_compiled", property(lambda kernel: kernel in there))

    return only


def makers(kernels: Sequence[Kernel]) -> list[str]:
    return [kernel.maker[1] for kernel in kernels]


def test_copies_want_nothing(compiled: Compiled) -> None:
    compiled(())
    models = memory_models({"base": {"w": torch.zeros(9)}})
    plan = finished(
        models, [Job("w", "F32", (9,), 0, 0, "copy", (Read("base", "w"),))], "F32", 99, 0
    )
    assert wanted_kernels(plan, models) == []


def test_a_chain_for_torch_wants_nothing(compiled: Compiled) -> None:
    compiled(())
    majority = Step("sign_consensus", {**WEIGHTS, "zero_sign": "majority"})
    assert wanted_kernels(*small([*BY_ROW[:-1], majority])) == []


def test_small_rows_share_the_general_kernels_where_these_are_there(compiled: Compiled) -> None:
    compiled(KERNELS)
    wanted = wanted_kernels(*small(CHAINS["ties"]))
    assert set(wanted) == {merge_tile, scan_tile, magnitudes_of_tile, nth_equal}
    assert wanted_kernels(*small(CHAINS["linear"])) == [merge_tile]


def test_rows_of_few_kinds_are_sooner_compiled_than_the_general_kernels(compiled: Compiled) -> None:
    compiled(())
    wanted = wanted_kernels(*small(CHAINS["ties"]))
    assert makers(wanted) == ["nth_equal", "merge_chain", "scan_chain", "sample_chain"]


def test_small_rows_of_many_kinds_share_the_general_kernels(compiled: Compiled) -> None:
    compiled(())
    models = one_tensor(torch.zeros(4), {"a": torch.ones(4)})
    count = FEW + 1
    steps = [(Step("task_arithmetic"), *[Step("scale", {"lambda": 0.5})] * n) for n in range(count)]
    (job,) = plan_for(models, [Step("task_arithmetic")], dtype="F32").jobs
    for n, wanted in ((FEW, ["merge_chain"] * FEW), (count, ["merge_tile"])):
        jobs = [replace(job, name=f"w{i}", steps=steps[i]) for i in range(n)]
        named = memory_models(
            {m: {f"w{i}": torch.zeros(4) for i in range(n)} for m in ("base", "a")}
        )
        jobs = [
            replace(job, reads=(Read("a", job.name),), base=Read("base", job.name)) for job in jobs
        ]
        assert makers(wanted_kernels(finished(named, jobs, "F32", 99, 0), named)) == wanted


def test_a_kind_with_many_entries_has_a_loop(
    monkeypatch: pytest.MonkeyPatch, compiled: Compiled
) -> None:
    compiled(KERNELS)
    plan, models = small(CHAINS["linear"])
    monkeypatch.setattr(kinds, "WORTHWHILE", 17)
    assert wanted_kernels(plan, models) == [merge_tile]
    monkeypatch.setattr(kinds, "WORTHWHILE", 16)
    assert makers(wanted_kernels(plan, models)) == ["merge_chain"]
    tensors = {name: torch.zeros(4, 2).half() for name in ("v", "w")}
    both = memory_models(dict.fromkeys(("base", *EXPERTS), tensors))
    # Rows of one kind count together.
    assert makers(wanted_kernels(plan_of(both, CHAINS["linear"]), both)) == ["merge_chain"]


def test_a_loop_that_is_there_is_used_however_small_the_row(compiled: Compiled) -> None:
    plan, models = small(CHAINS["linear"])
    compiled(())
    (loop,) = wanted_kernels(plan, models)
    compiled((*KERNELS, loop))
    assert wanted_kernels(plan, models) == [loop]


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        (BY_ROW, {"merge_tile"}),
        ([*each("dare", {"density": 1}, EXPERTS), MEAN], {"merge_tile"}),
        (CHAINS["slerp"], {"gram_tile", "merge_chain"}),
        ([*CHAINS["dare by l1, then a trim"][:2], MEAN], {"kept_chain", "merge_chain"}),
        (
            [*BY_ROW[:-1], *CHAINS["dare by l1, then a trim"][:2], MEAN],
            {"kept_tile", "merge_tile"},
        ),
        (CHAINS["by deviation"], {"kept_tile", "merge_chain"}),
        (
            [*each("norm_share", {"spare_1d": False}, EXPERTS), MEAN],
            {"squares", "refine", "nth_equal", "sample_chain", "merge_chain"},
        ),
        (
            [*each("dare", {"density": 1}, EXPERTS), *TIES],
            {"merge_tile", "scan_tile", "magnitudes_of_tile", "nth_equal"},
        ),
        (
            [*BY_ROW[:-1], *TIES],
            {"merge_tile", "scan_tile", "magnitudes_of_tile", "nth_equal"},
        ),
    ],
    ids=[
        "by row",
        "keeps all",
        "slerp",
        "by l1",
        "by row and l1",
        "by deviation",
        "by share",
        "keeps all, then ranks",
        "by row, then ranks",
    ],
)
def test_what_no_loop_knows_is_left_to_the_general_kernels(
    compiled: Compiled, steps: list[Step], wanted: set[str]
) -> None:
    compiled(())
    got = wanted_kernels(*small(steps))
    assert set(makers(got)) == wanted
    general = {merge_tile, scan_tile, gram_tile, kept_tile, magnitudes_of_tile, nth_equal}
    assert general | {squares, refine} >= {kernel for kernel in got if len(kernel.maker) == 2}


def test_an_adapter_wants_its_product_and_enters_as_a_delta(compiled: Compiled) -> None:
    compiled(())
    plan, models = small(CHAINS["task arithmetic"])
    (plain,) = wanted_kernels(plan, models)
    (job,) = plan.jobs
    low_rank = replace(job.reads[0], lora=LoraFactors("w.lora_A", "w.lora_B", 1.0))
    jobs = [replace(job, reads=(low_rank, *job.reads[1:]))]
    product, loop = wanted_kernels(finished(models, jobs, "F16", 1 << 40, 0), models)
    assert product is low_rank_tile
    assert loop.maker != plain.maker
    assert '"deltas": [true, false]' in loop.maker[2]


@pytest.mark.parametrize("transposed", [False, True])
def test_a_quantised_input_wants_the_loop_that_decodes_it(
    compiled: Compiled, transposed: bool
) -> None:
    compiled(())
    plan, models = small(CHAINS["linear"])
    plain = wanted_kernels(plan, models)
    ((name, info),) = models["a"].header.tensors.items()
    coded = Coded("E2M1", info, info, (1, 1), transposed=transposed)
    header = replace(models["a"].header, tensors={name: replace(info, coded=coded)})
    found = wanted_kernels(plan, {**models, "a": replace(models["a"], header=header)})
    assert (dequantise_columns if transposed else dequantise_rows) in found
    assert not {dequantise_columns, dequantise_rows} & set(plain)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> set[Kernel]:
    """The kernels that rows call while a test runs."""
    seen: set[Kernel] = set()
    bind = Kernel.on

    def on(kernel: Kernel, *args: Any) -> Callable[..., None]:
        if kernel.maker[0] != "sha256":  # which is no row's
            seen.add(kernel)
        return bind(kernel, *args)

    monkeypatch.setattr(Kernel, "on", on)
    return seen


def use_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "WORTHWHILE", 1)


def use_general_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "merge_loop", lambda *args: None)
    monkeypatch.setattr(brackets, "ranked", lambda *args: None)
    monkeypatch.setattr(totals, "kept_loop", lambda *args: None)


@pytest.fixture(scope="module", autouse=True)
def _loops_compiled() -> None:
    """Compile all loops of this module together."""
    models = one_tensor(torch.zeros(2, 2).half(), dict.fromkeys(EXPERTS, torch.ones(2, 2).half()))
    with pytest.MonkeyPatch.context() as patch:
        use_loops(patch)
        wanted = [k for c in CHAINS.values() for k in wanted_kernels(plan_of(models, c), models)]
        for op, params in (("magnitude", {"density": 0.5}), ("breadcrumbs", BAND)):
            lone = one_tensor(torch.zeros(2, 2), {"e0": torch.zeros(2, 2)})
            steps = [Step(op, {**params, "unit": "tensor"} if op != "magnitude" else params, "e0")]
            wanted += wanted_kernels(plan_for(lone, [*steps, Step("task_arithmetic")]), lone)
    warm.compile_kernels(list(dict.fromkeys(wanted)))


@pytest.mark.parametrize("chain", CHAINS)
def test_loops_give_the_bytes_of_the_general_kernels_and_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: set[Kernel], chain: str
) -> None:
    models = save_models(tmp_path, SHAPES, dtype=torch.float16, experts=EXPERTS, scale=0.1)
    plan = plan_of(models, CHAINS[chain])
    with monkeypatch.context() as patch:
        use_loops(patch)
        wanted = wanted_kernels(plan, models)
        by_loops = run(plan, models, tmp_path / "loops", threads=2)
    # What is called without being wanted would be compiled in the midst of a run.
    assert called <= set(wanted)
    assert {kernel for kernel in wanted if kernel.maker[1] == "merge_chain"} <= called
    ranked = any(step.op in ("magnitude", "breadcrumbs") for step in CHAINS[chain])
    assert ranked == any(kernel.maker[1] == "scan_chain" for kernel in called)
    assert ranked == any(kernel.maker[1] == "sample_chain" for kernel in called)
    called.clear()
    with monkeypatch.context() as patch:
        use_general_kernels(patch)
        in_general = run(plan, models, tmp_path / "general", threads=2)
    assert called <= {*KERNELS}
    assert merge_tile in called
    with monkeypatch.context() as patch:
        patch.setenv("MERGEKIT_LITE_JIT", "0")
        run(plan, models, tmp_path / "torch")
    wanted_bytes = output(tmp_path / "torch")
    assert same_bytes(output(tmp_path / "loops"), wanted_bytes)
    assert same_bytes(output(tmp_path / "general"), wanted_bytes)
    for name, part in by_loops.inputs.items():
        other = in_general.inputs[name]
        assert part.delta_norm == (other.delta_norm and pytest.approx(other.delta_norm, rel=1e-4))
        assert replace(part, delta_norm=0) == replace(other, delta_norm=0)


@pytest.mark.parametrize("tile", [1 << 12, 1 << 14, 1 << 20])
@pytest.mark.parametrize("chain", ["ties", "dare by l1, then a trim"])
def test_loops_give_the_same_bytes_in_tiles_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str, tile: int
) -> None:
    models = save_models(tmp_path, SHAPES, dtype=torch.float16, experts=EXPERTS, scale=0.1)
    plan = plan_of(models, CHAINS[chain])
    use_loops(monkeypatch)
    run(plan, models, tmp_path / "usual")
    monkeypatch.setattr("mergekit_lite.engine.local.tile_for", lambda plan, options: tile)
    run(plan, models, tmp_path / "out")
    assert same_bytes(output(tmp_path / "out"), output(tmp_path / "usual"))


@pytest.mark.parametrize("use", [use_loops, use_general_kernels])
@pytest.mark.parametrize("source", ["base", "b"])
@pytest.mark.parametrize("chain", [name for name in CHAINS if name not in IN_WEIGHTS])
def test_what_is_not_finite_is_told_alike(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chain: str,
    source: str,
    use: Callable[[pytest.MonkeyPatch], None],
) -> None:
    use(monkeypatch)
    monkeypatch.setattr("mergekit_lite.engine.local.tile_for", lambda plan, options: 1 << 14)
    generator = torch.Generator().manual_seed(0)
    given = {name: torch.randn(100_000, generator=generator).half() for name in ("base", *EXPERTS)}
    given[source][[3, 70_000, 99_999]] = torch.tensor([np.nan, np.inf, -np.inf]).half()
    models = one_tensor(given.pop("base"), given)
    with pytest.raises(DataError) as caught:
        run(plan_of(models, CHAINS[chain]), models, tmp_path / "out")
    (problem,) = caught.value.problems
    assert problem.where == f"{source}: w"
    assert problem.what == "3 of 100,000 entries are NaN or infinite"


@pytest.mark.parametrize("use", [use_loops, use_general_kernels])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_ranks_are_exact_both_ways(
    monkeypatch: pytest.MonkeyPatch,
    called: set[Kernel],
    layout: Callable[[int], Values],
    use: Callable[[pytest.MonkeyPatch], None],
) -> None:
    use(monkeypatch)
    check([layout(BIG)], 0.2)
    check([layout(BIG)], 0.15, gamma=0.01)
    assert (scan_tile in called) == (use is use_general_kernels)
    assert ("scan_chain" in makers([*called])) == (use is use_loops)
