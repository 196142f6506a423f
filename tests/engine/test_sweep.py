"""Statistics of the whole model: those of all tensors as one, whatever the tiles and threads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mergekit_lite.engine.known import STATISTICS, load_known
from mergekit_lite.engine.options import Options
from mergekit_lite.engine.shard import write_shard
from mergekit_lite.engine.sweep import _Sweep
from mergekit_lite.errors import DataError, Interrupted
from mergekit_lite.ops import registry
from mergekit_lite.ops._chain import statistic
from mergekit_lite.ops._place import Place, random_key
from mergekit_lite.ops._random import kept
from mergekit_lite.ops._spec import REGISTRY, combine, post
from mergekit_lite.ops._statistics import OUTSIDE, Order, Totals
from mergekit_lite.plan.questions import questions_of
from mergekit_lite.plan.types import Plan, Step
from mergekit_lite.sources import Model
from tests.engine.plans import EXPERTS, each, output, plan_for, run, same_bytes, save_models

SHAPES = {
    "model.layers.0.w": (90, 61),
    "model.layers.1.w": (4097,),
    "model.norm": (33,),
    "empty": (0, 4),
}
TRIM = {"density": 0.3, "scope": "model"}


@pytest.fixture(autouse=True)
def no_memory_of_earlier_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setattr("mergekit_lite.plan.remembered.cache_folder", lambda part: folder / part)


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions each sweep of the test was about."""
    found: list[int] = []
    answers = _Sweep.answers

    def counted(self, tallies):  # type: ignore[no-untyped-def]
        found.append(len(tallies))
        return answers(self, tallies)

    monkeypatch.setattr(_Sweep, "answers", counted)
    return found


def deltas(models: Mapping[str, Model]) -> dict[str, dict[str, torch.Tensor]]:
    """Return every expert's deltas, by expert and tensor, in the plan's order of tensors."""
    stored = {name: load_file(model.root) for name, model in models.items()}
    base = stored.pop("base")
    return {
        expert: {name: tensors[name].float() - base[name].float() for name in base}
        for expert, tensors in stored.items()
    }


def threshold(plan: Plan, op: str, expert: str, folder: Path) -> float:
    """Return the threshold that a run has found for one op of one expert."""
    table = load_known(folder).table
    (key,) = [q.key for q in questions_of(plan) if (q.op, q.expert) == (op, expert)]
    (cut,) = table[key]
    return float(cut.threshold)


def kth(values: Sequence[torch.Tensor], density: float) -> float:
    """Return the k-th largest magnitude of all tensors together, k as the op takes it."""
    every = torch.cat([value.flatten() for value in values]).abs()
    return float(every.kthvalue(every.numel() - int(density * every.numel()) + 1).values)


@pytest.mark.parametrize("jit", ["1", "0"])
def test_a_trim_of_the_whole_model_is_that_of_all_tensors_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jit: str
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    models = save_models(tmp_path, SHAPES)
    plan = plan_for(models, [*each("magnitude", TRIM), Step("sign_consensus")])
    run(plan, models, tmp_path / "out", threads=1)
    for expert, tensors in deltas(models).items():
        found = threshold(plan, "magnitude", expert, tmp_path / "out")
        assert found == kth(list(tensors.values()), 0.3)


@pytest.mark.parametrize("jit", ["1", "0"])
def test_a_trim_after_a_random_drop_ranks_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jit: str
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    models = save_models(tmp_path, SHAPES)
    drop = each("dare", {"density": 0.6})
    steps = [step for pair in zip(drop, each("magnitude", TRIM), strict=True) for step in pair]
    plan = plan_for(models, [*steps, Step("sign_consensus")])
    run(plan, models, tmp_path / "out", threads=2)
    for expert, tensors in deltas(models).items():
        dropped = []
        for name, delta in tensors.items():
            key = random_key(plan.seed, "dare", expert, name)
            place = Place(name=name, size=delta.numel(), key=key)
            dropped.append(delta * kept(delta, place, 0.6) * torch.tensor(1 / 0.6))
        assert threshold(plan, "magnitude", expert, tmp_path / "out") == kth(dropped, 0.3)


def test_two_trims_take_two_sweeps_and_the_second_sees_what_the_first_left(
    tmp_path: Path, sweeps: list[int]
) -> None:
    models = save_models(tmp_path, SHAPES, experts=["math"])
    steps = [
        *each("magnitude", {"density": 0.5, "scope": "model"}, ["math"]),
        *each("magnitude", {"density": 0.2, "scope": "model"}, ["math"]),
        Step("task_arithmetic"),
    ]
    plan = plan_for(models, steps, dtype="F32")
    run(plan, models, tmp_path / "out")
    assert sweeps == [1, 1]
    assert [question.level for question in questions_of(plan)] == [0, 1]
    first, second = (load_known(tmp_path / "out").table[q.key] for q in questions_of(plan))
    every = list(deltas(models)["math"].values())
    assert first[0].threshold == kth(every, 0.5)
    assert second[0].threshold == kth(every, 0.2)


def centre(values, place, params, found):  # type: ignore[no-untyped-def]
    """A derived input: how far each value is from its model's mean, by the earlier answer."""
    (sums,) = found
    mean = [plain / ones for plain, ones in zip(sums.plain, sums.absolute, strict=True)]
    return [value - torch.tensor(m).float() for value, m in zip(values, mean, strict=True)]


def halves(values, place, params):  # type: ignore[no-untyped-def]
    return [value / 2 for value in values]


@pytest.fixture
def test_ops() -> Iterator[None]:
    registry()

    @combine(
        name="probe",
        title="Probe",
        paper="none",
        needs=(
            Totals(whole=True, plain=True, absolute=True, gram=True),
            Order(
                lambda params, size: (1, size // 3, size),
                whole=True,
                derived=centre,
                signed=True,
                each=True,
            ),
            Totals(whole=True, absolute=True, by_layer=True, inputs=halves),
        ),
    )
    def probe(inputs, *, found, place):  # type: ignore[no-untyped-def]
        """Shift by what is known."""
        sums, cuts, layers = found
        shift = sums.plain[0] + cuts[1][1].threshold + cuts[2][0].threshold
        layer = OUTSIDE if place.layer is None else place.layer
        return inputs[0] + torch.tensor(shift + layers[layer].absolute[0]).float()

    @post(
        name="shrink",
        title="Shrink",
        paper="none",
        needs=Totals(whole=True, absolute=True),
    )
    def shrink(merged, *, sums, deltas):  # type: ignore[no-untyped-def]
        """Divide by the sum of magnitudes, and look at the raw deltas."""
        return merged / torch.tensor(sums.absolute[0] + sums.absolute[1])

    yield
    del REGISTRY["probe"], REGISTRY["shrink"]


@pytest.mark.usefixtures("test_ops")
def test_answers_of_combines_and_posts_are_those_of_all_tensors_as_one(tmp_path: Path) -> None:
    models = save_models(tmp_path, SHAPES, dtype=torch.float32)
    plan = plan_for(models, [Step("probe"), Step("shrink")], dtype="F32")
    run(plan, models, tmp_path / "out")
    questions = {(q.op, q.index): q for q in questions_of(plan)}
    assert [q.level for q in questions_of(plan)] == [0, 0, 1, 2]
    table = load_known(tmp_path / "out").table
    every = [torch.cat([t.flatten() for t in own.values()]) for own in deltas(models).values()]
    spec = registry()["probe"]
    sums, cuts, _ = statistic(spec, {}, every, Place(size=every[0].numel()))
    found = table[questions["probe", 0].key]
    # One tensor ends blocks elsewhere, so sums agree to rounding and are otherwise exact.
    assert found.plain == pytest.approx(sums.plain, rel=1e-12)
    assert found.absolute == pytest.approx(sums.absolute, rel=1e-12)
    assert [x for row in found.gram for x in row] == pytest.approx(
        [x for row in sums.gram for x in row], rel=1e-12
    )
    ranked = table[questions["probe", 1].key]
    means = [torch.tensor(p / a).float() for p, a in zip(found.plain, found.absolute, strict=True)]
    for own, mean, value in zip(ranked, means, every, strict=True):
        ordered = (value - mean).sort(descending=True).values
        size = len(ordered)
        assert [c.threshold for c in own] == [float(ordered[i - 1]) for i in (1, size // 3, size)]
    assert cuts[0][0].threshold == pytest.approx(ranked[0][0].threshold, rel=1e-4)


@pytest.mark.usefixtures("test_ops")
def test_tiles_threads_and_kernels_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = save_models(tmp_path, SHAPES)
    steps = [*each("magnitude", TRIM), Step("probe"), Step("shrink")]
    plan = plan_for(models, steps)
    results = []
    for number, (tile, threads, jit) in enumerate([(1 << 18, 1, "1"), (1 << 12, 3, "0")]):
        monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
        for module in ("local", "sweep"):
            monkeypatch.setattr(f"mergekit_lite.engine.{module}.tile_for", lambda *_, t=tile: t)
        # Another folder for the cache, so that nothing is remembered.
        monkeypatch.setattr(
            "mergekit_lite.plan.remembered.cache_folder",
            lambda part, n=number: tmp_path / f"cache{n}" / part,
        )
        out = tmp_path / f"out{number}"
        run(plan, models, out, threads=threads)
        results.append((output(out), (out / STATISTICS).read_text()))
    assert same_bytes(results[0][0], results[1][0])
    assert json.loads(results[0][1]) == json.loads(results[1][1])


def ties(density: float, lambda_: float) -> list[Step]:
    return [
        *each("magnitude", {"density": density, "scope": "model"}),
        Step("sign_consensus"),
        Step("scale", {"lambda": lambda_}),
    ]


def test_another_lambda_does_not_sweep_again_and_another_density_does(
    tmp_path: Path, sweeps: list[int]
) -> None:
    models = save_models(tmp_path, SHAPES)
    for number, steps in enumerate([ties(0.2, 1.0), ties(0.2, 0.5), ties(0.3, 0.5)]):
        run(plan_for(models, steps), models, tmp_path / f"out{number}")
    assert sweeps == [len(EXPERTS), len(EXPERTS)]
    # What was remembered is what a sweep finds.
    first, second = (load_known(tmp_path / f"out{n}").table for n in (0, 1))
    assert first == second


def test_a_changed_input_is_swept_again_and_the_others_are_not(
    tmp_path: Path, sweeps: list[int]
) -> None:
    models = save_models(tmp_path, SHAPES)
    plan = plan_for(models, ties(0.2, 1.0))
    run(plan, models, tmp_path / "out")
    (tmp_path / "math.safetensors").write_bytes((tmp_path / "code.safetensors").read_bytes())
    run(plan, models, tmp_path / "again")
    assert sweeps == [3, 1]
    table = load_known(tmp_path / "again").table
    math, code = (
        next(table[q.key] for q in questions_of(plan) if q.expert == expert)
        for expert in ("math", "code")
    )
    assert math == code


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', "damage"])
def test_a_damaged_cache_is_ignored(tmp_path: Path, sweeps: list[int], text: str) -> None:
    models = save_models(tmp_path, SHAPES)
    plan = plan_for(models, ties(0.2, 1.0))
    run(plan, models, tmp_path / "out")
    file = tmp_path / "cache" / "statistics.json"
    if text == "damage":
        known = json.loads(file.read_text())
        file.write_text(json.dumps({key: {"cuts": [["x"]]} for key in known}))
    else:
        file.write_text(text)
    run(plan, models, tmp_path / "again")
    assert sweeps == [3, 3]
    assert same_bytes(output(tmp_path / "out"), output(tmp_path / "again"))


def test_a_resumed_run_finds_the_answers_in_its_folder(
    tmp_path: Path, sweeps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = save_models(tmp_path, SHAPES)
    plan = plan_for(models, ties(0.2, 1.0), shard_size=5000)
    with monkeypatch.context() as stopped:
        stopped.setattr(
            "mergekit_lite.engine.shard.Worker.run",
            lambda *_: (_ for _ in ()).throw(Interrupted("stopped")),
        )
        with pytest.raises(Interrupted):
            run(plan, models, tmp_path / "out")
    (tmp_path / "cache" / "statistics.json").unlink()
    run(plan, models, tmp_path / "out")
    assert sweeps == [3]
    run(plan, models, tmp_path / "undisturbed")
    assert same_bytes(output(tmp_path / "out"), output(tmp_path / "undisturbed"))


def test_rows_that_say_the_same_share_a_question(tmp_path: Path) -> None:
    models = save_models(tmp_path, SHAPES, experts=["math"])
    trim = each("magnitude", TRIM, ["math"])
    plan = plan_for(models, [*trim, Step("task_arithmetic")])
    (question,) = questions_of(plan)
    assert question.size == 90 * 61 + 4097 + 33
    other = Step("magnitude", {**plan.jobs[0].steps[0].params, "density": 0.9}, "math")
    jobs = [replace(plan.jobs[0], steps=(other, *plan.jobs[0].steps[1:])), *plan.jobs[1:]]
    apart = questions_of(replace(plan, jobs=tuple(jobs)))
    assert len(apart) == 2
    assert sum(q.size for q in apart) == question.size


def test_a_stopped_sweep_leaves_a_folder_that_can_be_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = save_models(tmp_path, SHAPES)
    plan = plan_for(models, ties(0.2, 1.0))

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Sweep, "_row", stopped)
        with pytest.raises(Interrupted, match="0 of 1 shards"):
            run(plan, models, tmp_path / "out")
    assert not (tmp_path / "out" / STATISTICS).exists()
    run(plan, models, tmp_path / "out")
    run(plan, models, tmp_path / "undisturbed")
    assert same_bytes(output(tmp_path / "out"), output(tmp_path / "undisturbed"))


@pytest.mark.parametrize("jit", ["1", "0"])
def test_a_row_is_not_computed_without_what_it_must_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jit: str
) -> None:
    """A worker elsewhere, whose folder nobody has swept for."""
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    models = save_models(tmp_path, SHAPES)
    plan = plan_for(models, ties(0.2, 1.0))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="`magnitude` needs a statistic of the whole model"):
        write_shard(plan, models, 0, tmp_path / "out", Options(), lambda event: None)
