"""What adapters hold beside factors, merged into one adapter: biases, tokens and whole modules."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mergekit_lite
from mergekit_lite.errors import RecipeError
from mergekit_lite.export.verify import verify
from mergekit_lite.ops import merge_tensors
from mergekit_lite.plan.types import Plan
from tests.checkpoints import tiny_llama
from tests.engine.test_adapters import adapt, llama
from tests.engine.test_fuse import change

EMBEDDING = "model.embed_tokens"
WEIGHTS = {"one": 0.7, "two": -0.4, "three": 0.5}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def adapters(root: Path, **configs: dict[str, Any]) -> None:
    for name, config in configs.items():
        adapt(root / "base", root / name, **{"r": 2, "target_modules": ["q_proj"], **config})
        change(root / name, name)


def recipe(root: Path, *names: str, **more: Any) -> dict[str, Any]:
    experts = {n: {"lora": str(root / n), "weight": WEIGHTS[n]} for n in names}
    return {"base": str(root / "base"), "experts": experts, **more}


def as_peft_merges(root: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Return the base with an adapter in it, by PEFT, which must find a place for all of it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(root / "base")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(keys|weights).*")
        model = PeftModel.from_pretrained(base, folder)
    state: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return state


def check(root: Path, *names: str, method: str = "cat") -> dict[str, Any]:
    """Merge adapters into one; with PEFT it must make the model that the recipe would make."""
    output = {"output": {"lora": {"method": method}}}
    mergekit_lite.run(recipe(root, *names, **output), root / "lora")
    assert verify(root / "lora") == []
    if method == "mean":
        equal = {name: {"lora": str(root / name), "weight": 1} for name in names}
        steps = {"experts": equal, "steps": [{"task_arithmetic": {"normalize": True}}]}
    else:
        steps = {"steps": ["task_arithmetic"]}
    mergekit_lite.run({**recipe(root, *names), **steps}, root / "dense")
    got = as_peft_merges(root, root / "lora")
    before = load_file(root / "base" / "model.safetensors")
    wanted = load_file(root / "dense" / "model.safetensors")
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert sum(not torch.equal(value, before[name]) for name, value in wanted.items()) > 2
    config: dict[str, Any] = json.loads((root / "lora" / "adapter_config.json").read_text())
    return config


BIASES: dict[str, dict[str, Any]] = {
    "lora_only": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "all": {"bias": "all", "target_modules": ["v_proj"]},
}


@pytest.mark.parametrize("method", ["cat", "mean"])
@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (("lora_only", "lora_only"), "lora_only"),
        (("lora_only", "lora_bias"), "lora_only"),
        (("lora_bias", "all", "lora_only"), "all"),
    ],
)
def test_biases_are_merged_whole(
    tmp_path: Path, kinds: tuple[str, ...], said: str, method: str
) -> None:
    llama(tmp_path / "base", "float32", bias=True)
    names = list(WEIGHTS)[: len(kinds)]
    adapters(tmp_path, **{n: BIASES[kind] for n, kind in zip(names, kinds, strict=True)})
    assert check(tmp_path, *names, method=method)["bias"] == said
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    assert f"{q}.base_layer.bias" in stored
    assert f"{q}.bias" not in stored


@pytest.mark.parametrize("tied", [False, True])
def test_trained_tokens_are_merged_as_rows(tmp_path: Path, tied: bool) -> None:
    tiny_llama(tmp_path / "base", dtype="float32", tied=tied)
    adapters(
        tmp_path,
        one={"trainable_token_indices": {"embed_tokens": [3, 63, 4]}},
        two={"trainable_token_indices": [4, 0]},
        three={},
    )
    config = check(tmp_path, *WEIGHTS)
    assert config["trainable_token_indices"] == {EMBEDDING: [0, 3, 4, 63]}
    assert config["modules_to_save"] is None
    key = f"base_model.model.{EMBEDDING}.token_adapter.trainable_tokens_delta"
    rows = load_file(tmp_path / "lora" / "adapter_model.safetensors")[key]
    own = load_file(tmp_path / "one" / "adapter_model.safetensors")[key]
    base = load_file(tmp_path / "base" / "model.safetensors")[f"{EMBEDDING}.weight"]
    torch.testing.assert_close(rows[3], base[63] + 0.7 * (own[1] - base[63]))


def test_any_steps_run_on_the_rows_of_all_tokens(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "base", dtype="bfloat16", tied=False)
    adapters(
        tmp_path,
        one={"trainable_token_indices": {"embed_tokens": [3, 5]}},
        two={"trainable_token_indices": {"embed_tokens": [5, 9]}},
    )
    lora = {"method": "knots", "inner": {"ties": {"density": 0.3}}}
    plan = mergekit_lite.plan(
        mergekit_lite.load(recipe(tmp_path, "one", "two", output={"lora": lora}))
    )
    assert Plan.from_json(plan.to_json()).row_maps == plan.row_maps
    mergekit_lite.run(plan, tmp_path / "lora")
    key = f"base_model.model.{EMBEDDING}.token_adapter.trainable_tokens_delta"
    base = load_file(tmp_path / "base" / "model.safetensors")[f"{EMBEDDING}.weight"].float()
    stored = {
        name: load_file(tmp_path / name / "adapter_model.safetensors")[key].float()
        for name in ("one", "two")
    }
    inputs = {"one": torch.zeros(3, 32), "two": torch.zeros(3, 32)}
    inputs["one"][:2] = stored["one"] - base[[3, 5]]
    inputs["two"][1:] = stored["two"] - base[[5, 9]]
    weights = [WEIGHTS["one"], WEIGHTS["two"]]
    want = merge_tensors("ties", inputs, base=base[[3, 5, 9]], weights=weights, density=0.3)
    got = load_file(tmp_path / "lora" / "adapter_model.safetensors")[key]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want)


def test_tokens_beside_a_whole_embedding_are_merged_whole(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "base", dtype="float32", tied=False)
    adapters(
        tmp_path,
        one={"trainable_token_indices": {"embed_tokens": [3]}},
        two={"modules_to_save": ["embed_tokens"]},
    )
    config = check(tmp_path, "one", "two")
    assert config["modules_to_save"] == [EMBEDDING]
    assert "trainable_token_indices" not in config


def test_saved_modules_have_the_mean_that_factors_have(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "base", dtype="float32", tied=False)
    saved = {"modules_to_save": ["lm_head", "model.norm"]}
    adapters(tmp_path, one=saved, two=saved, three={})
    assert check(tmp_path, *WEIGHTS, method="mean")["modules_to_save"] == ["lm_head", "model.norm"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"use_dora": True}, "holds DoRA, whose magnitudes do not add up"),
        ({"kasa_config": {}}, "holds KaSA, which no sum of factors says"),
        (
            {"trainable_token_indices": {"embed_tokens": [3]}},
            "some adapters have factors, others single rows (trained tokens)",
        ),
        ({"modules_to_save": ["embed_tokens"]}, "some adapters have factors, others the whole"),
        (
            {"target_modules": ["embed_tokens"], "save_embedding_layers": True},
            "holds a copy of the base's tensor",
        ),
    ],
)
def test_what_no_adapter_says_is_refused_with_the_way_out(
    tmp_path: Path, config: dict[str, Any], told: str
) -> None:
    tiny_llama(tmp_path / "base", dtype="float32", tied=False)
    adapters(tmp_path, one={"target_modules": ["embed_tokens", "q_proj"]}, two=config)
    given = recipe(tmp_path, "one", "two", output={"lora": {"method": "cat"}})
    with pytest.raises(RecipeError) as caught:
        mergekit_lite.plan(given)
    assert told in str(caught.value)
    assert "extract-lora" in str(caught.value) or "drop: true" in str(caught.value)
