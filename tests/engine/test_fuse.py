"""Adapters merged into one adapter, against the dense computation and against PEFT."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergekit_lite
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.export.verify import verify
from mergekit_lite.ops._chain import Stage, merge
from tests.checkpoints import tiny_llama
from tests.engine.test_adapters import adapt

WEIGHTS = {"one": 0.7, "two": -0.4, "three": 1.0}
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A base and three adapters, of other ranks, scales and modules each."""
    tiny_llama(tmp_path / "base", dtype="float32", tied=False)
    every = ["q_proj", "down_proj"]
    for name, config in {
        "one": {"r": 4, "lora_alpha": 8, "target_modules": every},
        "two": {"r": 4, "lora_alpha": 2, "use_rslora": True, "target_modules": every},
        "three": {"r": 3, "target_modules": [*every, "embed_tokens"]},
    }.items():
        torch.manual_seed(len(name))
        adapt(tmp_path / "base", tmp_path / name, **config)
        change(tmp_path / name, name)
    return tmp_path


def change(folder: Path, name: str) -> None:
    """Give an adapter weights of its own, which `adapt` draws with one seed."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    stored = load_file(folder / "adapter_model.safetensors")
    drawn = {k: 0.3 * torch.randn(v.shape, generator=generator) for k, v in stored.items()}
    save_file(drawn, folder / "adapter_model.safetensors")


def recipe(root: Path, names: tuple[str, ...] = ("one", "two", "three"), **lora: Any) -> Any:
    experts = {n: {"lora": str(root / n), "weight": WEIGHTS[n]} for n in names}
    return {"base": str(root / "base"), "experts": experts, "output": {"lora": lora}}


def made(root: Path, name: str = "out", **more: Any) -> dict[str, torch.Tensor]:
    """Run a recipe and return the deltas of its adapter by module, as PEFT forms them."""
    given = more.pop("recipe", None) or recipe(root, **more)
    mergekit_lite.run(given, root / name)
    return deltas(root / name)


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """Return scale * B @ A of every module of an adapter on the tiny base, in fp64."""
    config = json.loads((folder / "adapter_config.json").read_text())
    stored = load_file(folder / "adapter_model.safetensors")
    found = {}
    for key in stored:
        if ".lora_A" not in key and ".lora_embedding_A" not in key:
            continue
        module = key.removeprefix("base_model.model.").split(".lora_")[0]
        a, b = stored[key].double(), stored[key.replace("_A", "_B")].double()
        rank = config["rank_pattern"].get(module, config["r"])
        assert a.shape[0] == rank
        alpha = config["alpha_pattern"].get(module, config["lora_alpha"])
        found[module] = b @ a * (alpha / (rank**0.5 if config["use_rslora"] else rank))
    return found


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), wanted.double(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["cat", "svd", "mean", "core_space", "knots"])
def test_the_sum_of_the_deltas(root: Path, method: str) -> None:
    rank = {"rank": 11} if method == "svd" else {}
    got = made(root, method=method, **rank)
    single = {name: deltas(root / name) for name in WEIGHTS}
    assert set(got) == {module for found in single.values() for module in found}
    for module, delta in got.items():
        factor = dict.fromkeys(WEIGHTS, 1 / 3) if method == "mean" else WEIGHTS
        close(delta, sum(factor[n] * f[module] for n, f in single.items() if module in f))
    assert verify(root / "out") == []


def test_a_lower_rank_is_the_best_of_its_rank(root: Path) -> None:
    whole = made(root, "whole", method="cat")
    for method in ("svd", "mean", "core_space", "knots"):
        got = made(root, method, method=method, rank=4)
        for module, delta in got.items():
            target = sum(deltas(root / n).get(module, 0) for n in WEIGHTS) / 3
            target = target if method == "mean" else whole[module]
            u, s, v = torch.linalg.svd(target)
            close(delta, (u[:, :4] * s[:4]) @ v[:4])


def test_linear_is_pefts(root: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    names = ("one", "two")
    base = AutoModelForCausalLM.from_pretrained(root / "base")
    model = PeftModel.from_pretrained(base, root / "one", adapter_name="one")
    model.load_adapter(root / "two", adapter_name="two")
    for ours, theirs in (("linear", "linear"), ("cat", "cat"), ("svd", "svd")):
        got = made(root, ours, names=names, method=ours)
        weights = (
            [abs(WEIGHTS[n]) for n in names] if ours == "svd" else list(map(WEIGHTS.get, names))
        )
        if ours == "svd":
            given = recipe(root, names, method="svd")
            for name in names:
                given["experts"][name]["weight"] = abs(WEIGHTS[name])
            got = made(root, "svd_2", recipe=given)
        model.add_weighted_adapter(list(names), weights, f"{ours}_", combination_type=theirs)
        module = model.get_submodule(f"base_model.model.{Q}")
        close(got[Q], module.get_delta_weight(f"{ours}_").detach())


@pytest.mark.parametrize(
    ("inner", "steps"),
    [
        (
            {"ties": {"density": 0.4}},
            [
                *[Stage("magnitude", {"density": 0.4, "ties": "index"}, n) for n in WEIGHTS],
                Stage("sign_consensus", {"weights": list(WEIGHTS.values())}),
            ],
        ),
        ("iso_c", [Stage("iso_c", {"weights": list(WEIGHTS.values())})]),
        ("tsv", [Stage("tsv_merge", {"weights": list(WEIGHTS.values())})]),
    ],
)
def test_steps_run_in_the_core_space(root: Path, inner: Any, steps: list[Stage]) -> None:
    """Bases, small matrices and what comes of them, by the definition and from dense deltas."""
    got = made(root, method="core_space", inner=inner)
    single = {name: deltas(root / name)[DOWN] for name in WEIGHTS}
    stored = {n: load_file(root / n / "adapter_model.safetensors") for n in WEIGHTS}
    prefix = f"base_model.model.{DOWN}"
    b = torch.cat([stored[n][f"{prefix}.lora_B.weight"].double() for n in WEIGHTS], 1)
    scale = {"one": 2.0, "two": 1.0, "three": 8 / 3}
    a = torch.cat([scale[n] * stored[n][f"{prefix}.lora_A.weight"].double() for n in WEIGHTS])
    left = torch.linalg.svd(b, full_matrices=False)[0]
    right = torch.linalg.svd(a, full_matrices=False)[2].T
    cores = {n: (left.T @ d @ right).float() for n, d in single.items()}
    if "ties" in inner:
        steps = [
            Stage(s.op, {k: v for k, v in s.params.items() if k != "ties"}, s.expert) for s in steps
        ]
    core = merge(torch.zeros_like(cores["one"]), cores, steps, name=f"{DOWN}.weight")
    torch.testing.assert_close(got[DOWN], left @ core.double() @ right.T, rtol=1e-3, atol=1e-4)


def test_knots_merges_what_is_left_of_one_shared_basis(root: Path) -> None:
    got = made(root, method="knots", inner={"ties": {"density": 0.5}})
    single = {name: deltas(root / name)[DOWN] for name in WEIGHTS}
    u, s, v = torch.linalg.svd(torch.cat(list(single.values()), 1), full_matrices=False)
    kept = int((s > 1e-5 * s[0]).sum())
    parts = torch.split((s[:, None] * v)[:kept], single["one"].shape[1], dim=1)
    inputs = {n: p.float() for n, p in zip(single, parts, strict=True)}
    steps = [
        *[Stage("magnitude", {"density": 0.5}, n) for n in WEIGHTS],
        Stage("sign_consensus", {"weights": list(WEIGHTS.values())}),
    ]
    merged = merge(torch.zeros_like(inputs["one"]), inputs, steps, name=f"{DOWN}.weight")
    torch.testing.assert_close(got[DOWN], u[:, :kept] @ merged.double(), rtol=1e-3, atol=1e-4)


def test_peft_loads_it_and_merges_to_what_we_merge(root: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lora = recipe(root, method="cat")
    lora["rules"] = [
        {"match": f"{Q}.weight", "take": "two"},
        {"match": "*.1.*.q_proj*", "drop": True},
    ]
    mergekit_lite.run(lora, root / "lora")
    base = AutoModelForCausalLM.from_pretrained(root / "base")
    before = {k: v.clone() for k, v in base.state_dict().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*keys.*")
        model = PeftModel.from_pretrained(base, root / "lora")
    state = model.merge_and_unload().state_dict()
    # The same recipe, written as a model; nothing is dropped there.
    dense = {k: v for k, v in lora.items() if k != "output"}
    dense["rules"] = [lora["rules"][0], {"match": "*.1.*.q_proj*", "take": "base"}]
    dense["steps"] = ["task_arithmetic"]
    mergekit_lite.run(dense, root / "dense")
    wanted = load_file(root / "dense" / "model.safetensors")
    for name, value in wanted.items():
        close(state[name], value)
    assert torch.equal(
        state["model.layers.1.self_attn.q_proj.weight"],
        before["model.layers.1.self_attn.q_proj.weight"],
    )


def test_saved_modules_are_merged_whole(root: Path) -> None:
    for name in ("one", "two"):
        adapt(
            root / "base",
            root / name / "whole",
            r=2,
            target_modules=["q_proj"],
            modules_to_save=["lm_head"],
        )
        change(root / name / "whole", name)
    given = recipe(root, ("one", "two"), method="core_space")
    for name in ("one", "two"):
        given["experts"][name]["lora"] += "/whole"
    mergekit_lite.run(given, root / "out")
    key = "base_model.model.lm_head.weight"
    base = load_file(root / "base" / "model.safetensors")["lm_head.weight"]
    wanted = base.clone()
    for name in ("one", "two"):
        own = load_file(root / name / "whole" / "adapter_model.safetensors")[key]
        wanted += WEIGHTS[name] * (own - base)
    close(load_file(root / "out" / "adapter_model.safetensors")[key], wanted)
    config = json.loads((root / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["lm_head"]


@pytest.mark.parametrize(
    ("change_", "message"),
    [
        ({"output": {"lora": {"method": "svd", "inner": "ties"}}}, "adds the adapters up"),
        ({"output": {"lora": {"method": "linear"}}}, "equal ranks only"),
        ({"output": {"lora": {"rank": 0}}}, "must be at least 1"),
        ({"output": {"lora": {"method": "kat"}}}, "output.lora.method"),
        ({"output": {"lora": {"inner": "ties"}}, "steps": ["ties"]}, "both are given"),
        ({"output": {"lora": {"ranks": 4}}}, "unknown key `ranks`"),
        ({"output": {"lora": "svd"}}, "must be a mapping"),
        ({"output": {"lora": {"inner": "linear"}}}, "works on whole weights"),
        (
            {"output": {"lora": {"inner": {"ties": {"scope": "model"}}}}},
            "statistic of the whole model",
        ),
    ],
)
def test_what_does_not_make_an_adapter(root: Path, change_: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        mergekit_lite.plan({**recipe(root), **change_})
    assert message in str(caught.value)


def test_models_and_lengths_have_no_factors(root: Path) -> None:
    tiny_llama(root / "tuned", dtype="float32", tied=False, seed=3)
    given = recipe(root)
    given["experts"]["tuned"] = {"model": str(root / "tuned")}
    with pytest.raises(RecipeError, match="extract-lora"):
        mergekit_lite.plan(given)
    adapt(root / "base", root / "dora", r=2, use_dora=True, target_modules=["q_proj"])
    given = recipe(root)
    given["experts"]["dora"] = {"lora": str(root / "dora")}
    with pytest.raises(RecipeError, match="holds DoRA"):
        mergekit_lite.plan(given)


def test_factors_that_are_not_finite_are_named(root: Path) -> None:
    file = root / "two" / "adapter_model.safetensors"
    stored = load_file(file)
    stored[f"base_model.model.{Q}.lora_B.weight"][0] = float("inf")
    save_file(stored, file)
    with pytest.raises(DataError, match="two"):
        made(root, method="cat")
    assert not (root / "out").exists()
