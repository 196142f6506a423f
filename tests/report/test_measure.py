"""Task vectors of a recipe against torch on whole models in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite import load
from mergekit_lite.checkpoint import layer_of, role_of
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.ops import merge_tensors
from mergekit_lite.plan.build import prepare
from mergekit_lite.report import measure as room
from mergekit_lite.report.measure import measure
from mergekit_lite.report.vectors import Vectors
from tests.checkpoints import perturbed, read_weights, tiny_llama, write_weights


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    base = tiny_llama(folder / "base")
    for seed, name in enumerate(("math", "code"), start=1):
        perturbed(base, folder / name, seed=seed, scale=0.02)
    # Where one expert stays put and signs agree, so that no count is trivial.
    weights = read_weights(folder / "code")
    frozen = next(name for name in weights if name.endswith("q_proj.weight"))
    weights[frozen] = read_weights(base)[frozen]
    write_weights(folder / "code", weights)
    return folder


def found(place: Path, threads: int = 1, **more: Any) -> Vectors:
    recipe = load(
        {
            "base": str(place / "base"),
            "experts": {"math": {"model": str(place / "math")}, "code": str(place / "code")},
            "steps": ["task_arithmetic"],
            **more,
        }
    )
    return measure(recipe, *prepare(recipe), threads=threads)


def deltas(place: Path) -> list[dict[str, torch.Tensor]]:
    base = read_weights(place / "base")
    return [
        {
            name: value.float() - base[name].float()
            for name, value in read_weights(place / e).items()
        }
        for e in ("math", "code")
    ]


def flat(vectors: dict[str, torch.Tensor], wanted: Any = lambda name: True) -> torch.Tensor:
    return torch.cat([v.flatten().double() for name, v in vectors.items() if wanted(name)])


@pytest.mark.parametrize("threads", [1, 3])
def test_whole_layer_and_role_equal_torch(
    place: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PART", 100)
    vectors = found(place, threads)
    whole = deltas(place)
    cases = [
        (vectors.total, lambda name: True),
        (vectors.by_layer()[1], lambda name: layer_of(name) == 1),
        (vectors.by_role()["attention.q"], lambda name: role_of(name) == "attention.q"),
    ]
    base = read_weights(place / "base")
    for sums, wanted in cases:
        a, b = (flat(vector, wanted) for vector in whole)
        assert sums.entries == a.numel()
        assert sums.norm(0) == pytest.approx(float(a.norm()), rel=1e-12)
        assert sums.cosine(0, 1) == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-9)
        assert sums.relative(1) == pytest.approx(
            float(b.norm() / flat(base, wanted).norm()), rel=1e-12
        )
        both = (a != 0) & (b != 0)
        assert sums.raw.shared == int(both.sum())
        assert sums.raw.conflicts == int((a * b < 0).sum())
        assert sums.kept is sums.raw or (sums.kept.both == sums.raw.both).all()
        either = (a != 0) | (b != 0)
        assert sums.raw.overlap(0, 1) == pytest.approx(float(both.sum() / either.sum()))
    assert not vectors.trimmed


def test_kept_entries_are_those_of_the_recipes_transforms(place: Path) -> None:
    steps = [{"magnitude": {"density": 0.25, "density_1d": None}}, "task_arithmetic"]
    vectors = found(place, steps=steps)
    kept = [
        flat({name: merge_tensors("magnitude", [value], density=0.25, density_1d=None)
              for name, value in vector.items()})
        for vector in deltas(place)
    ]  # fmt: skip
    votes = vectors.total.kept
    assert vectors.trimmed
    for i in (0, 1):
        assert votes.both[i, i] == int((kept[i] != 0).sum())
    assert votes.both[0, 1] == int(((kept[0] != 0) & (kept[1] != 0)).sum())
    assert votes.conflicts == int((kept[0] * kept[1] < 0).sum())
    assert vectors.total.raw.shared > votes.shared


def test_rules_say_what_they_touch(place: Path) -> None:
    rules = [
        {"match": {"layers": "0"}, "take": "math"},
        {"match": {"role": "norm"}, "take": "base"},
    ]
    vectors = found(place, rules=rules)
    base = read_weights(place / "base")
    by_what = {t.what.split(" for ")[0]: t for t in vectors.touched}
    assert by_what["take base"].tensors == sum(role_of(name) == "norm" for name in base)
    layer = [n for n in base if layer_of(n) == 0 and role_of(n) != "norm"]
    assert by_what["take math"].tensors == len(layer)
    assert by_what["take math"].entries == sum(base[name].numel() for name in layer)
    assert sum(t.tensors for t in vectors.touched) == len(base)
    # The figures are those of all experts, whatever the rules make of them.
    assert vectors.total.norm(1) == pytest.approx(float(flat(deltas(place)[1]).norm()))


def test_one_expert_has_no_pair(place: Path) -> None:
    experts = {"math": {"model": str(place / "math")}}
    plain = found(place, experts=experts).plain()
    assert plain["total"]["cosine"] == {}
    assert plain["total"]["sign_conflicts"] is None
    assert json.loads(json.dumps(plain)) == plain


def test_a_recipe_without_experts_is_refused(place: Path) -> None:
    with pytest.raises(RecipeError, match="no task vectors"):
        found(place, experts={}, steps=[{"passthrough": {"source": "base"}}])


def test_nan_in_an_expert_is_named(place: Path, tmp_path: Path) -> None:
    weights = read_weights(place / "math")
    name = next(n for n in weights if n.endswith("up_proj.weight"))
    weights[name][0, 0] = float("nan")
    broken = tiny_llama(tmp_path / "broken")
    write_weights(broken, weights)
    with pytest.raises(DataError, match="NaN") as caught:
        found(place, experts={"broken": {"model": str(broken)}})
    assert name in str(caught.value)
