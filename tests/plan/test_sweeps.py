"""Which sweeps over the whole model a run will make, and what earlier runs have left to find."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mergekit_lite.cli.plan import cost_text
from mergekit_lite.errors import RecipeError
from mergekit_lite.ops._place import Cut, Sums
from mergekit_lite.ops._statistics import EVERY
from mergekit_lite.plan.build import build
from mergekit_lite.plan.estimate import estimate
from mergekit_lite.plan.questions import questions_of
from mergekit_lite.plan.remembered import Remembered, digest_of
from mergekit_lite.plan.stack_layers import stack_layers
from mergekit_lite.plan.sweeps import sweeps_of
from mergekit_lite.plan.types import Job, Plan
from tests.plan.hollow import llama, recipe, write, write_adapter

SIZE = sum(2 * shape[0] * (shape[1] if shape[1:] else 1) for _, shape in llama().values())
TENSORS = len(llama())
ONE_MODULE = {"model.layers.0.self_attn.q_proj": (32, 32)}
ANSWER = (Cut(0.5, EVERY),)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergekit_lite.plan.remembered.cache_folder", lambda part: tmp_path / part)


def plan(root: Path, steps: str, more: str = "") -> Plan:
    text = "base: base\nexperts: {math: {model: math}, code: {model: code}}\n"
    return build(recipe(root, f"{text}steps: {steps}\n{more}"))


def test_the_plan_says_what_is_read_before_the_first_row(root: Path) -> None:
    made = plan(root, "[{ties: {scope: model, zero_sign: majority}}]")
    first, second = sweeps_of(made)
    assert (first.ops, first.passes, first.rows) == (("magnitude",), 2, TENSORS)
    assert (second.ops, second.passes, second.rows) == (("sign_consensus",), 1, TENSORS)
    assert (first.read_bytes, second.read_bytes) == (6 * SIZE, 3 * SIZE)
    cost = estimate(made)
    assert cost.read_bytes == 12 * SIZE
    lines = [line for line in cost_text(made, cost).splitlines() if line.startswith("sweep")]
    assert len(lines) == 2
    assert f"`magnitude`: {TENSORS} tensors read twice" in lines[0]
    assert estimate(plan(root, "[ties]")).sweeps == ()


def test_only_what_is_asked_about_is_read(root: Path) -> None:
    own = "experts: {math: {model: math, steps: [graft]}, code: {model: code}}\n"
    made = build(recipe(root, f"base: base\n{own}steps: [task_arithmetic]"))
    (sweep,) = sweeps_of(made)
    assert sweep.read_bytes == 2 * 2 * SIZE
    left = plan(root, "[{graft: {density: 1}}, task_arithmetic]")
    assert sweeps_of(left) == []
    assert len(questions_of(left)) == 2


def test_what_an_adapter_leaves_alone_is_counted_and_not_read(root: Path) -> None:
    write_adapter(root / "lora", ONE_MODULE)
    text = "base: base\nexperts: {math: {model: math}, low: {lora: lora}}\n"
    made = build(recipe(root, f"{text}steps: [graft, {{tatr: {{quantile: 0.5}}}}]"))
    math, low, both = questions_of(made)
    assert (math.expert, low.expert, both.op) == ("math", "low", "tatr")
    assert math.size == low.size == both.size == SIZE // 2
    assert sum(entries for _, entries in low.untouched) == SIZE // 2 - 32 * 32
    assert not math.untouched
    assert not both.untouched
    assert len(low.uses) == 1
    assert len(both.uses) == TENSORS
    # The first layer lacks a module of its entries, the second none.
    assert dict(low.untouched)[1] - dict(low.untouched)[0] == 32 * 32
    (first, _) = sweeps_of(made)
    assert first.read_bytes == 2 * (2 * SIZE + 4 * 2 * 4 * 32)
    alone = build(recipe(root, f"{text}steps: [{{tatr: {{weights: {{low: 1}}}}}}]"))
    (question,) = questions_of(alone)
    assert question.size == SIZE // 2
    assert [job.kind for job in alone.jobs].count("copy") == TENSORS - 1
    assert Plan.from_json(alone.to_json()) == alone
    fewer = replace(alone, untouched={})
    assert fewer.content_digest() != alone.content_digest()
    assert digest_of(fewer, questions_of(fewer)[0], {}) != digest_of(alone, question, {})


def test_what_a_model_may_lack_is_counted_too(root: Path) -> None:
    tensors = {name: info for name, info in llama().items() if "1.mlp" not in name}
    write(root / "math", tensors)
    made = plan(root, "[{ties: {scope: model}}]", "allow_missing: ['model.layers.1.mlp.*']")
    assert {question.size for question in questions_of(made)} == {SIZE // 2}


def test_an_adapter_made_of_adapters_ranks_its_own_space(root: Path) -> None:
    write_adapter(root / "lora", ONE_MODULE)
    text = "base: base\nexperts: {low: {lora: lora}, high: {lora: lora}}\nsteps: [ties]\n"
    made = build(recipe(root, f"{text}output: {{lora: {{method: core_space}}}}"))
    assert made.untouched == {}


def test_what_an_earlier_run_has_found_is_not_read_again(root: Path, tmp_path: Path) -> None:
    made = plan(root, "[{ties: {scope: model}}]")
    cache = Remembered()
    for question in questions_of(made):
        cache.put(digest_of(made, question, {}), ANSWER)
    cache.save()
    assert sweeps_of(made) == []
    assert sweeps_of(plan(root, "[{ties: {scope: model, lambda: 0.5}}]")) == []
    assert len(sweeps_of(plan(root, "[{ties: {scope: model, density: 0.5}}]"))) == 1


def test_a_digest_knows_the_seed_only_behind_a_random_drop(root: Path) -> None:
    def digests(steps: str, seed: int) -> list[str | None]:
        made = plan(root, steps, f"seed: {seed}")
        return [digest_of(made, question, {}) for question in questions_of(made)]

    drop = "[{dare_ties: {scope: model}}]"
    assert digests(drop, 1) != digests(drop, 2)
    assert digests(drop, 1) == digests(drop, 1)
    assert digests("[{ties: {scope: model}}]", 1) == digests("[{ties: {scope: model}}]", 2)


def test_a_later_question_waits_for_the_answers_before_it(root: Path) -> None:
    made = plan(root, "[{ties: {scope: model, zero_sign: majority}}]")
    *trims, votes = questions_of(made)
    assert digest_of(made, votes, {}) is None
    known = {question.key: ANSWER for question in trims}
    first = digest_of(made, votes, known)
    assert first is not None
    assert digest_of(made, votes, {**known, trims[0].key: (Cut(0.25, EVERY),)}) != first


def test_inputs_that_lie_elsewhere_are_not_remembered(root: Path) -> None:
    made = plan(root, "[{ties: {scope: model}}]")
    gone = {name: replace(source, root="/nowhere") for name, source in made.inputs.items()}
    elsewhere = replace(made, inputs=gone)
    assert {digest_of(elsewhere, q, {}) for q in questions_of(elsewhere)} == {None}
    assert len(sweeps_of(elsewhere)) == 1


def test_the_cache_keeps_the_newest_and_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mergekit_lite.plan.remembered.MOST_BYTES", 1000)
    file = tmp_path / "some" / "statistics.json"
    sums = {3: Sums(absolute=(0.1, 2.0)), -1: Sums(plain=(1e-300,))}
    for number in range(100):
        cache = Remembered(file)
        cache.put(f"{number:064d}", ANSWER if number % 2 else sums)
        cache.save()
    assert file.stat().st_size <= 1000
    last = Remembered(file)
    assert last.get(f"{99:064d}") == ANSWER
    assert last.get(f"{98:064d}") == sums
    assert last.get(f"{0:064d}") is None
    assert len(json.loads(file.read_text())) < 10


def test_each_stack_counts_its_own_layers() -> None:
    def named(name: str) -> Job:
        return Job(name, "F32", (1,), 0, 0, "copy", ())

    names = [f"encoder.layer.{i}.w" for i in range(2)] + [f"decoder.layer.{i}.w" for i in range(4)]
    made = Plan({}, tuple(map(named, [*names, "embed"])), (), 0, 5, "F32")
    assert stack_layers(made) == {"encoder.layer": 2, "decoder.layer": 5}


def test_a_kept_expert_must_be_read(root: Path) -> None:
    step = "[{mediator_split: {keep: math, weights: {code: 1, other: 1}}}]"
    text = "base: base\nexperts: {math: {model: math}, code: {model: code}, other: {model: code}}\n"
    with pytest.raises(RecipeError, match=r"`mediator_split\.keep` is `math`, which is not read"):
        build(recipe(root, f"{text}steps: {step}"))
    made = plan(root, "[{mediator_split: {keep: base}}]")
    assert [read.source for read in made.jobs[0].reads] == ["math", "code"]
