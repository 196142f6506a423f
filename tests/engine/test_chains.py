"""The engine against the torch specification, bit for bit, on both of its paths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mergekit_lite.engine import cpu
from mergekit_lite.engine.cpu import merge_tiles
from mergekit_lite.engine.program import Program, compile_job
from mergekit_lite.engine.row import Row
from mergekit_lite.kernels.steps import ROW_DROP, ROW_KEPT
from mergekit_lite.ops import registry
from mergekit_lite.plan.fused import is_known
from mergekit_lite.plan.types import Job, Read, Step
from tests.engine.plans import (
    EXPERTS,
    each,
    expected,
    output,
    plan_for,
    run,
    same_bytes,
    save_models,
)

SHAPES = {"wide": (70, 513), "tall": (3000, 96), "vector": (77,), "one": (1,), "scalar": ()}
WEIGHTS = {"weights": [0.5, -0.25, 1.5]}
MEAN = Step("sign_consensus", WEIGHTS)
CHAINS = {
    "linear": [Step("linear", WEIGHTS)],
    "linear without normalising": [Step("linear", {**WEIGHTS, "normalize": False})],
    "task arithmetic": [Step("task_arithmetic", {**WEIGHTS, "lambda": 0.3})],
    "task arithmetic, normalised": [Step("task_arithmetic", {**WEIGHTS, "normalize": True})],
    "scale": [Step("task_arithmetic", WEIGHTS), Step("scale", {"lambda": 0.7})],
    "consensus": [MEAN],
    "consensus by count": [Step("sign_consensus", {**WEIGHTS, "elect": "count", "agg": "sum"})],
    "consensus, largest": [Step("sign_consensus", {**WEIGHTS, "agg": "max"})],
    "consensus, zero elects nobody": [Step("sign_consensus", {**WEIGHTS, "zero_sign": "none"})],
    "consensus over signed weights": [Step("sign_consensus", {**WEIGHTS, "divisor": "signed"})],
    "ties": [*each("magnitude", {"density": 0.2}), MEAN, Step("scale", {"lambda": 1.3})],
    "ties with ties kept": [*each("magnitude", {"density": 0.3, "tie_mode": "threshold"}), MEAN],
    "ties as the authors trim": [
        *each("magnitude", {"density": 0.3, "tie_mode": "official"}),
        MEAN,
    ],
    "trim to a count": [*each("magnitude", {"count": 100}), MEAN],
    "grafts": [
        *each("graft", {"density": 0.05, "scope": "tensor"}),
        Step("task_arithmetic", WEIGHTS),
    ],
    "ties, norms too": [*each("magnitude", {"density": 0.4, "density_1d": None}), MEAN],
    "dare": [*each("dare", {"density": 0.3}), Step("task_arithmetic", WEIGHTS)],
    "dare, not rescaled": [*each("dare", {"density": 0.3, "rescale": "none"}), MEAN],
    "dare by l1": [*each("dare", {"density": 0.3, "rescale": "l1"}), MEAN],
    "trim, then dare by l1": [
        *each("magnitude", {"density": 0.5}),
        *each("dare", {"density": 0.6, "rescale": "l1"}),
        *each("magnitude", {"density": 0.2}),
        *each("dare", {"density": 0.5, "rescale": "l1"}),
        MEAN,
    ],
    "dare then trim": [*each("dare", {"density": 0.5}), *each("magnitude", {"density": 0.2}), MEAN],
    "breadcrumbs by row": [*each("breadcrumbs", {"density": 0.2, "gamma": 0.05}), MEAN],
    "breadcrumbs by tensor": [
        *each("breadcrumbs", {"density": 0.2, "gamma": 0.05, "unit": "tensor"}),
        MEAN,
    ],
    "drop by rank": [*each("magprune", {"density": 0.6, "epsilon": 0.3}), MEAN],
    "drop by rank, not rescaled": [*each("magprune", {"rescale": "none"}), MEAN],
    "drop by rank, then trim": [*each("magprune", {}), *each("magnitude", {"density": 0.5}), MEAN],
    "drop by rank and l1": [*each("magprune", {"density": 0.6, "rescale": "l1"}), MEAN],
    "rows, then drops by l1, then rows": [
        *each("breadcrumbs", {"density": 0.8, "gamma": 0.01}),
        *each("magprune", {"density": 0.6, "epsilon": 0.3, "rescale": "l1"}),
        *each("dare", {"density": 0.9, "rescale": "l1"}),
        *each("magprune", {"density": 0.7}),
        MEAN,
    ],
    "one drop by rank among others by l1": [
        Step("magprune", {"rescale": "l1"}, "math"),
        Step("dare", {"density": 0.3, "rescale": "l1"}, "code"),
        Step("magprune", {"density": 1.0, "rescale": "l1"}, "chat"),
        MEAN,
    ],
    "rows then trim": [
        *each("breadcrumbs", {"density": 0.6, "gamma": 0.01}),
        *each("magnitude", {"density": 0.5}),
        MEAN,
    ],
    "one expert's own step": [
        Step("dare", {"density": 0.5}, "code"),
        *each("magnitude", {"density": 0.5}),
        MEAN,
    ],
    "largest": [Step("magmax", {**WEIGHTS, "lambda": 0.5})],
    "largest of trimmed": [*each("magnitude", {"density": 0.2}), Step("magmax", WEIGHTS)],
    "active": [Step("ram", {"epsilon": 1e-3}), Step("scale", {"lambda": 0.7})],
    "claimed": [Step("consensus", {**WEIGHTS, "mask_lambda": 0.6, "lambda": 0.3})],
    "claimed by one": [Step("consensus", {**WEIGHTS, "at_least": 1})],
    "multislerp": [Step("multislerp", WEIGHTS)],
    "karcher": [Step("karcher", {"weights": [1.0, 2.0, 0.5], "space": "delta"})],
    "model stock": [Step("model_stock", {"clamp_t": False}), Step("scale", {"lambda": 0.7})],
    "sce": [Step("sce"), Step("scale", {"lambda": 0.7})],
    "sce, half of what varies": [Step("sce", {"select_topk": 0.5, "merge_masked": False})],
    "sce of everything": [Step("sce", {"select_topk": 1.0})],
    "model stock by row": [Step("model_stock", {"filter_wise": True})],
    "by deviation": [*each("deviation", {"factor": 0.7}), MEAN, Step("scale", {"lambda": 1.3})],
    "by deviation, norms too": [*each("deviation", {"spare_1d": False}), MEAN],
    "rows, then by deviation, then a trim": [
        *each("breadcrumbs", {"density": 0.8, "gamma": 0.01}),
        *each("deviation", {"factor": 0.2}),
        *each("magnitude", {"density": 0.5}),
        MEAN,
    ],
    "share of the norm": [*each("norm_share", {"share": 0.8}), MEAN],
    "share of the norm, norms too": [*each("norm_share", {"spare_1d": False}), MEAN],
    "a drop by l1, then shares of the norm": [
        *each("magprune", {"rescale": "l1"}),
        *each("norm_share", {"share": 0.95}),
        *each("norm_share", {"share": 0.6}),
        MEAN,
    ],
    "one by share, one by rank, one by deviation": [
        Step("norm_share", {"share": 0.7}, "math"),
        Step("magnitude", {"density": 0.5}, "code"),
        Step("deviation", {}, "chat"),
        MEAN,
    ],
    "masked": [
        *each("magnitude", {"density": 0.5}),
        Step("sign_consensus", {"agg": "sum"}),
        Step("scale", {"lambda": 0.9}),
        Step("consensus_mask", {"lambda": 0.7}),
        Step("scale", {"lambda": 1.3}),
    ],
    "masked after a drop by l1": [
        *each("magprune", {"rescale": "l1"}),
        Step("task_arithmetic", {"lambda": 0.3}),
        Step("consensus_mask", {"mask_lambda": 0.2, "at_least": 1}),
    ],
    "claimed, then masked": [
        Step("consensus", {**WEIGHTS, "at_least": 1, "lambda": 1.2}),
        Step("consensus_mask", {"mask_lambda": 0.6}),
    ],
    "sce, masked": [Step("sce"), Step("consensus_mask", {"at_least": 1})],
    "whole model": [*each("magnitude", {"density": 0.2, "scope": "model"}), MEAN],
}


@pytest.mark.parametrize("jit", ["1", "0"])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_gives_the_bytes_of_the_specification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str, jit: str
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    models = save_models(tmp_path, SHAPES)
    space = CHAINS[chain][-1].op != "linear"
    plan = plan_for(models, CHAINS[chain], needs_base=space)
    run(plan, models, tmp_path / "out", threads=2)
    wanted = expected(plan, models)
    if chain == "whole model":
        wanted = _whole_model(plan, models)
    assert same_bytes(output(tmp_path / "out"), wanted)


OF_THEIR_OWN = {"mask_lambda": dict(zip(EXPERTS, (0.2, 0.9, 0.5), strict=True))}


@pytest.mark.parametrize(
    "chain",
    [
        [Step("consensus", {**WEIGHTS, **OF_THEIR_OWN})],
        [*each("magnitude", {"density": 0.5}), MEAN, Step("consensus_mask", OF_THEIR_OWN)],
    ],
)
def test_claims_go_by_each_experts_own_limit(tmp_path: Path, chain: list[Step]) -> None:
    models = save_models(tmp_path, SHAPES)
    plan = plan_for(models, chain)
    assert all(compile_job(job, plan.seed) is not None for job in plan.jobs)
    run(plan, models, tmp_path / "out")
    wanted = expected(plan, models)
    assert same_bytes(output(tmp_path / "out"), wanted)
    alike = [Step(chain[-1].op, {**chain[-1].params, "mask_lambda": 0.2})]
    assert not same_bytes(wanted, expected(plan_for(models, [*chain[:-1], *alike]), models))


def _whole_model(plan, models):  # type: ignore[no-untyped-def]
    from safetensors.torch import load_file

    from mergekit_lite.ops import get
    from mergekit_lite.ops._chain import merge
    from mergekit_lite.ops._statistics import model_cuts

    stored = {name: load_file(model.root) for name, model in models.items()}
    deltas = {
        e: {n: stored[e][n].float() - stored["base"][n].float() for n in SHAPES} for e in EXPERTS
    }
    order = get("magnitude").needs
    params = {"density": 0.2, "scope": "model"}
    cuts = [model_cuts(order, params, deltas[e]) for e in EXPERTS]
    return {
        name: merge(
            stored["base"][name],
            {e: stored[e][name] for e in EXPERTS},
            plan.jobs[0].steps,
            name=name,
            seed=plan.seed,
            known=dict(enumerate(cuts)),
        ).to(torch.bfloat16)
        for name in SHAPES
    }


@pytest.mark.parametrize("chain", CHAINS)
def test_the_kernels_know_the_chain(tmp_path: Path, chain: str) -> None:
    models = save_models(tmp_path, {"w": (8, 8)})
    plan = plan_for(models, CHAINS[chain], needs_base=CHAINS[chain][-1].op != "linear")
    assert compile_job(plan.jobs[0], plan.seed) is not None


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("written", ["BF16", "F16", "F32"])
def test_every_dtype_in_and_out(tmp_path: Path, stored: torch.dtype, written: str) -> None:
    models = save_models(tmp_path, SHAPES, dtype=stored)
    plan = plan_for(models, CHAINS["ties"], dtype=written)
    run(plan, models, tmp_path / "out")
    assert same_bytes(output(tmp_path / "out"), expected(plan, models))


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_any_number_of_experts(tmp_path: Path, count: int) -> None:
    names = [f"e{i}" for i in range(count)]
    models = save_models(tmp_path, SHAPES, experts=names)
    steps = [
        *each("magnitude", {"density": 0.4}, names),
        Step("sign_consensus", {"weights": [1.0] * count}),
    ]
    plan = plan_for(models, steps)
    run(plan, models, tmp_path / "out")
    assert same_bytes(output(tmp_path / "out"), expected(plan, models))


def test_slerp_of_two_models(tmp_path: Path) -> None:
    models = save_models(tmp_path, SHAPES, experts=["a", "b"], scale=1.0)
    for t in (0.0, 0.3, 1.0):
        plan = plan_for(models, [Step("slerp", {"t": t})], needs_base=False)
        out = tmp_path / f"out{t}"
        run(plan, models, out)
        assert same_bytes(output(out), expected(plan, models))


@pytest.mark.parametrize("op", ["karcher", "multislerp", "nuslerp"])
def test_means_on_the_sphere_of_whole_weights(tmp_path: Path, op: str) -> None:
    models = save_models(tmp_path, SHAPES, experts=["a", "b"], scale=1.0)
    step = Step(op, {"weights": [0.5, 2.0], "space": "weight"})
    plan = plan_for(models, [step], needs_base=False)
    assert compile_job(plan.jobs[0], plan.seed) is not None
    run(plan, models, tmp_path / "out")
    assert same_bytes(output(tmp_path / "out"), expected(plan, models))


@pytest.mark.parametrize("t", [0.0, 0.01, 1.0])
def test_one_model_by_small_steps(tmp_path: Path, t: float) -> None:
    models = save_models(tmp_path, SHAPES, experts=["a"])
    plan = plan_for(models, [Step("nearswap", {"t": t})])
    assert compile_job(plan.jobs[0], plan.seed) is not None
    run(plan, models, tmp_path / "out")
    assert same_bytes(output(tmp_path / "out"), expected(plan, models))


@pytest.mark.parametrize("op", ["multislerp", "nuslerp"])
def test_inner_products_after_a_transform_are_left_to_torch(tmp_path: Path, op: str) -> None:
    models = save_models(tmp_path, SHAPES, experts=["a", "b"])
    steps = [*each("dare", {"density": 0.5}, ["a", "b"]), Step(op, {"weights": [0.5, 2.0]})]
    plan = plan_for(models, steps)
    assert compile_job(plan.jobs[0], plan.seed) is None
    run(plan, models, tmp_path / "out")
    assert same_bytes(output(tmp_path / "out"), expected(plan, models))


def test_two_masks_are_left_to_torch(tmp_path: Path) -> None:
    models = save_models(tmp_path, SHAPES)
    chain = [Step("task_arithmetic"), *[Step("consensus_mask", {"at_least": n}) for n in (1, 2)]]
    plan = plan_for(models, chain)
    assert compile_job(plan.jobs[0], plan.seed) is None
    run(plan, models, tmp_path / "out")
    assert same_bytes(output(tmp_path / "out"), expected(plan, models))


def test_rows_are_ranked_once_where_marks_have_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marks of (3000, 96) take 36,000 bytes an expert: of two, with room for one, one is drawn."""
    models = save_models(tmp_path, {"tall": (3000, 96)}, experts=EXPERTS[:2])
    drops = each("magprune", {"density": 0.6, "rescale": "l1"}, EXPERTS[:2])
    plan = plan_for(models, [*drops, Step("task_arithmetic")])
    kept: list[list[int]] = []

    def seen(row: Row, program: Program, *rest: object) -> None:
        merge_tiles(row, program, *rest)  # type: ignore[arg-type]
        kept.append(np.ravel(program.kinds).tolist())

    monkeypatch.setattr(cpu, "merge_tiles", seen)
    for keep in (0, 36_000, 72_000):
        monkeypatch.setattr("mergekit_lite.engine.local.keep_for", lambda plan, options, k=keep: k)
        run(plan, models, tmp_path / f"out{keep}")
        assert same_bytes(output(tmp_path / f"out{keep}"), expected(plan, models))
    assert kept == [[ROW_DROP, ROW_DROP], [ROW_KEPT, ROW_DROP], [ROW_KEPT, ROW_KEPT]]


@pytest.mark.parametrize("params", [{"unit": "row"}, {"unit": "column"}])
def test_rows_and_columns_on_the_sphere(tmp_path: Path, params: dict[str, str]) -> None:
    models = save_models(tmp_path, SHAPES, experts=["a", "b"])
    plan = plan_for(models, [Step("nuslerp", {"weights": [0.5, 2.0], **params})])
    run(plan, models, tmp_path / "out", threads=2)
    assert same_bytes(output(tmp_path / "out"), expected(plan, models))


def test_what_is_said_to_be_known_is_compiled() -> None:
    """With the parameters of every example that an op has."""
    compiled = set()
    for spec in registry().values():
        for vector in spec.vectors:
            names = list("abcdefgh"[: max(len(vector.deltas), 2)])  # as examples name them
            steps = [Step(spec.name, {**vector.params, "weights": [1.0] * len(names)})]
            if spec.kind == "transform":
                steps = [*each(spec.name, vector.params, names), Step("linear")]
            elif spec.kind == "post":
                steps = [Step("linear"), Step(spec.name, vector.params)]
            reads = tuple(Read(name, "w") for name in names)
            job = Job("w", "F32", (6, 4), 0, 0, "merge", reads, Read("base", "w"), tuple(steps))
            if is_known(job):
                assert compile_job(job, 0) is not None
                compiled.add(spec.name)
    assert {"dare", "graft", "sce", "slerp", "ramplus", "take", "scale"} < compiled
    assert {"deviation", "norm_share", "consensus_mask", "magprune"} < compiled
