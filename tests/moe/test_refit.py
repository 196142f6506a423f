"""Routed models merged with routers that are fitted to those of both, from texts of both."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_lite import api
from mergekit_lite.errors import DataError, RecipeError, ResourceError
from mergekit_lite.moe.refit.cost import memory
from mergekit_lite.plan.estimate import estimate
from mergekit_lite.plan.row_memory import TEXT_BYTES
from mergekit_lite.plan.types import GATE
from tests.calibrate.conftest import save_model
from tests.moe.dense import load, tensor

Recipe = Callable[..., dict[str, Any]]
COUNTS = {"mixtral": "num_local_experts", "glm4_moe": "n_routed_experts"}
ROUTER = {"mixtral": "block_sparse_moe.gate.weight", "glm4_moe": "mlp.gate.weight"}


def tuned(base: Path, out: Path, seed: int, apart: float) -> Path:
    """Return a model whose routers were tuned far from the base's, and all else a little."""
    shutil.copytree(base, out)
    tensors = load_file(out / "model.safetensors")
    torch.manual_seed(seed)
    for name, value in tensors.items():
        router = name.endswith(tuple(ROUTER.values()))
        value += torch.randn_like(value) * (apart if router else 0.002)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def with_topics(base: Path) -> Path:
    """Give a model's words one of two directions, as words of a topic have."""
    tensors = load_file(base / "model.safetensors")
    torch.manual_seed(9)
    tensors["model.embed_tokens.weight"] += torch.randn(2, 32).repeat_interleave(32, 0)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    return base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, two tuned models and texts of each, of two families. Read only."""
    root = tmp_path_factory.mktemp("refit")
    for family in ROUTER:
        base = with_topics(save_model(root / family, family, **{COUNTS[family]: 8}))
        for seed, name in enumerate(("math", "code"), 1):
            tuned(base, root / f"{family}-{name}", seed, 0.15)
    draw = random.Random(0)
    for name, words in (("math", range(3, 32)), ("code", range(32, 64))):
        lines = [" ".join(f"w{draw.choice(words)}" for _ in range(24)) for _ in range(50)]
        (root / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": one}) for one in lines))
    return root


@pytest.fixture
def recipe(folder: Path) -> Recipe:
    def make(family: str = "mixtral", **routers: Any) -> dict[str, Any]:
        names = ("math", "code")
        return {
            "base": str(folder / family),
            "experts": {name: str(folder / f"{family}-{name}") for name in names},
            "steps": ["linear"],
            "routers": {"data": {n: str(folder / f"{n}.jsonl") for n in names}, **routers},
        }

    return make


def manifest(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "moe_manifest.json").read_text())
    return found


@pytest.mark.parametrize("family", ["mixtral", "glm4_moe"])
def test_fitted_routers_keep_more_of_the_choices(
    recipe: Recipe, tmp_path: Path, family: str
) -> None:
    kept = {}
    for method in ("harc", "regmean"):
        api.run(recipe(family, method=method, shrink=1, least_overlap=0), tmp_path / method)
        load(tmp_path / method)
        layers = manifest(tmp_path / method)["layers"]
        assert [one["layer"] for one in layers] == ([0, 1, 2] if family == "mixtral" else [1, 2])
        overlaps = [sum(one["overlap"].values()) / 2 for one in layers]
        kept[method] = sum(overlaps) / len(layers)
        for way in ("mean", "base"):
            kept[way] = sum(one["overlap_of_others"][way] for one in layers) / len(layers)
    assert kept["harc"] > kept["mean"] > kept["base"]
    assert kept["regmean"] > kept["mean"]


def test_equal_routers_come_back_and_all_else_is_merged(recipe: Recipe, tmp_path: Path) -> None:
    changed = recipe()
    changed["experts"]["code"] = changed["experts"]["math"]
    api.run(changed, tmp_path / "out")
    name = f"model.layers.1.{ROUTER['mixtral']}"
    math = Path(changed["experts"]["math"])
    assert torch.equal(tensor(tmp_path / "out", name), tensor(math, name))
    for one in manifest(tmp_path / "out")["layers"]:
        assert one["overlap"] == {"math": 1.0, "code": 1.0}
    plain = {**recipe(), "routers": "base"}
    api.run(plain, tmp_path / "plain")
    api.run(recipe(least_overlap=0), tmp_path / "fitted")
    before, after = (load_file(tmp_path / n / "model.safetensors") for n in ("plain", "fitted"))
    differing = {name for name in before if not torch.equal(before[name], after[name])}
    assert differing == {f"model.layers.{layer}.{ROUTER['mixtral']}" for layer in range(3)}


def test_the_same_recipe_gives_the_same_bytes(recipe: Recipe, tmp_path: Path) -> None:
    for out in ("one", "two"):
        api.run(recipe(least_overlap=0), tmp_path / out)
    one, two = (tmp_path / out / "model.safetensors" for out in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_merge_that_is_there_gets_routers(recipe: Recipe, tmp_path: Path) -> None:
    """The two steps of HARC: any merge first, then its routers."""
    asked = recipe(least_overlap=0)
    api.run(asked, tmp_path / "together")
    api.run({**asked, "routers": "merge"}, tmp_path / "merged")
    again = {**asked, "base": str(tmp_path / "merged"), "steps": [{"take": {"source": "base"}}]}
    api.run(again, tmp_path / "again")
    for name, value in load_file(tmp_path / "together" / "model.safetensors").items():
        torch.testing.assert_close(tensor(tmp_path / "again", name), value, rtol=0, atol=1e-5)


def test_routers_that_keep_too_little_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"router of layer 0 keeps \d+ % .* at least 100 %") as told:
        api.run(recipe(least_overlap=1), tmp_path / "out")
    assert told.value.exit_code == 3
    assert len(told.value.problems) == 3
    assert not (tmp_path / "out").exists()


def test_what_fitting_costs_is_told_before_a_weight_is_read(recipe: Recipe, tmp_path: Path) -> None:
    plan = api.plan(recipe(tokens=1000))
    cost = estimate(plan)
    assert cost.peak_memory >= memory(plan) > TEXT_BYTES
    told = "`harc`: texts (at most 2,000 tokens) run through the merged model"
    assert cost.gates.startswith(told)
    assert "3 routers are fitted" in cost.gates
    more = memory(api.plan(recipe(tokens=2000))) - memory(plan)
    # States before a layer and behind it, inputs in three forms, probabilities in fp64.
    assert more == 2000 * (3 * 5 * 32 + 12 * 32 + 8 * 8)
    with pytest.raises(ResourceError, match=r"needs .* of memory") as caught:
        api.run(recipe(), tmp_path / "out", max_memory=300_000_000)
    assert "fewer `tokens` need less" in str(caught.value.problems[0].hint)


def test_a_rule_that_names_routers_wins(recipe: Recipe) -> None:
    asked = {**recipe(), "rules": [{"match": {"layers": "1", "role": "router"}, "take": "math"}]}
    plan = api.plan(asked)
    sources = {job.name: job.reads[0].source for job in plan.jobs if "gate.weight" in job.name}
    assert list(sources.values()) == [GATE, "math", GATE]


def test_what_cannot_be_fitted_is_refused(recipe: Recipe, folder: Path, dense: Any) -> None:
    def problems(asked: dict[str, Any]) -> str:
        with pytest.raises(RecipeError) as caught:
            api.plan(asked)
        return "\n".join(f"{p.what} [{p.hint}]" for p in caught.value.problems)

    asked = recipe(methd="harc")
    del asked["routers"]["data"]["code"]
    asked["routers"]["data"]["mth"] = "x"
    text = problems(asked)
    assert "unknown key `methd` in `routers`" in text
    assert "did you mean `math`" in text
    assert "expert `code` has no texts" in text
    asked = recipe()
    asked["routers"]["data"]["code"] = "nowhere.txt"
    assert "there is no file `nowhere.txt`" in problems(asked)
    asked = recipe()
    dense_models = {"math": str(dense("llama", 1)), "code": str(dense("llama", 2))}
    assert "no routers that could be fitted" in problems(
        {**asked, "base": str(dense("llama")), "experts": dense_models}
    )
    whole = {**recipe(), "steps": [{"ties": {"density": 0.5, "scope": "model"}}]}
    assert "statistics of the whole model" in problems(whole)
    assert "not fitted together with `moe`" in problems({**recipe(), "moe": {"gate": "random"}})
    assert "neither `base` nor `merge`" in problems({**recipe(), "routers": "hark"})
