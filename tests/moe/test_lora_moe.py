"""Adapters side by side, with a gate in each module, load in transformers alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import ArrowConfig, PeftModel, create_arrow_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mergekit_lite import api
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.moe.compat import check_model
from mergekit_lite.sources import resolve
from tests.moe.dense import tokens
from tests.moe.loras import LINEAR, save_lora
from tests.moe.own_code import load, logits

pytestmark = [
    pytest.mark.usefixtures("modules_of_their_own"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # of PEFT
]
Dense = Callable[..., Path]
Loras = Callable[..., list[Path]]


@pytest.fixture
def loras(dense: Dense, tmp_path: Path) -> Loras:
    """Returns so many adapters of a dense model of a family."""

    def make(count: int = 3, family: str = "llama", **own: Any) -> list[Path]:
        base = dense(family)
        return [
            save_lora(base, tmp_path / f"{family}-lora{n}", seed=n, **own) for n in range(count)
        ]

    return make


def recipe(base: Path, adapters: list[Path], **moe: Any) -> dict[str, Any]:
    experts = {f"e{number}": {"lora": str(path)} for number, path in enumerate(adapters)}
    return {"base": str(base), "experts": experts, "moe": {"target": "lora_moe", **moe}}


def made(tmp_path: Path, name: str, described: dict[str, Any]) -> Any:
    api.run(described, tmp_path / name)
    return load(tmp_path / name)


def mixtures(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if hasattr(module, "experts_a"):
            yield name, module


def merged(base: Path, adapters: list[Path], weights: list[float]) -> torch.Tensor:
    """Return the logits of a base into which PEFT merges adapters with these weights."""
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), adapters[0], adapter_name="0"
    )
    for number, adapter in enumerate(adapters[1:], start=1):
        model.load_adapter(adapter, adapter_name=str(number))
    names = [str(number) for number in range(len(adapters))]
    if weights == [1.0]:
        return logits(model.merge_and_unload().eval())
    model.add_weighted_adapter(names, weights, "sum", combination_type="cat")
    model.set_adapter("sum")
    return logits(model.merge_and_unload().eval())


def test_one_adapter_is_what_peft_merges(dense: Dense, loras: Loras, tmp_path: Path) -> None:
    adapters = loras(1, use_rslora=True)
    model = made(tmp_path, "one", recipe(dense("llama"), adapters, gate="zeros"))
    assert torch.allclose(logits(model), merged(dense("llama"), adapters, [1.0]), atol=1e-5)


def test_gates_of_zeros_are_the_mean_of_all_adapters(
    dense: Dense, loras: Loras, tmp_path: Path
) -> None:
    adapters = loras(3)
    wide = {"r": 7, "target_modules": LINEAR[1:]}
    adapters[1] = save_lora(dense("llama"), tmp_path / "wide", seed=9, **wide)
    described = recipe(dense("llama"), adapters, gate="zeros", experts_per_token=3)
    model = made(tmp_path, "mean", described)
    assert model.config.expert_modules["model.layers.0.self_attn.q_proj"] == 4
    assert model.config.expert_modules["model.layers.0.mlp.up_proj"] == 7
    wanted = merged(dense("llama"), adapters, [1 / 3] * 3)
    assert torch.allclose(logits(model), wanted, atol=1e-5)
    # A factor of an expert is the adapter with that weight.
    scaled = [{"expert": f"e{n}", "residual_scale": scale} for n, scale in ((0, 1.5), (2, -3.0))]
    described["moe"]["experts"] = [scaled[0], "e1", scaled[1]]
    found = logits(made(tmp_path, "scaled", described))
    wanted = merged(dense("llama"), adapters, [0.5, 1 / 3, -1.0])
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("gate", ["arrow", "random"])
def test_factors_of_zeros_are_the_base(
    dense: Dense, loras: Loras, tmp_path: Path, gate: str
) -> None:
    model = made(tmp_path, "base", recipe(dense("llama"), loras(zero=True), gate=gate))
    plain = AutoModelForCausalLM.from_pretrained(dense("llama")).eval()
    assert torch.allclose(logits(model), logits(plain), atol=1e-6)
    assert all(not module.gate.any() for _, module in mixtures(model)) == (gate == "arrow")


def test_arrow_is_that_of_peft(dense: Dense, loras: Loras, tmp_path: Path) -> None:
    adapters = loras(4)
    model = made(tmp_path, "arrow", recipe(dense("llama"), adapters, gate="arrow"))
    assert model.config.num_experts_per_tok == 3
    base = AutoModelForCausalLM.from_pretrained(dense("llama"))
    config = ArrowConfig(top_k=3, router_temperature=1.0)
    theirs = create_arrow_model(base, [str(path) for path in adapters], config).eval()
    found = logits(model)
    assert torch.allclose(found, logits(theirs), atol=1e-4)
    assert not torch.allclose(found, merged(dense("llama"), adapters, [0.25] * 4), atol=0.01)
    for name, module in list(mixtures(model))[:4]:
        for gate, path in zip(module.gate, adapters, strict=True):
            stored = load_file(path / "adapter_model.safetensors")
            a, b = (stored[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
            right = torch.linalg.svd((b @ a).double())[2][0]
            assert abs(float(gate.detach().double() @ right)) == pytest.approx(1.0, abs=1e-5)


def vectors(dense: Dense, tmp_path: Path, count: int) -> list[Path]:
    """Save vectors for all linear layers that adapters change."""
    wide = {"q_proj": 32, "v_proj": 32, "up_proj": 32, "down_proj": 48}
    place = {"q_proj": "self_attn", "v_proj": "self_attn", "up_proj": "mlp", "down_proj": "mlp"}
    files = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        found = {
            f"model.layers.{layer}.{place[leaf]}.{leaf}": 0.5
            + torch.randn(wide[leaf], generator=generator)
            for layer in range(3)
            for leaf in LINEAR
        }
        files.append(tmp_path / f"vectors{number}.safetensors")
        save_file(found, files[-1])
    return files


def with_vectors(dense: Dense, adapters: list[Path], tmp_path: Path, **moe: Any) -> dict[str, Any]:
    files = vectors(dense, tmp_path, len(adapters))
    experts = [{"expert": f"e{n}", "rows": str(file)} for n, file in enumerate(files)]
    return recipe(dense("llama"), adapters, experts=experts, **moe)


def test_phatgoose_chooses_by_its_formula(dense: Dense, loras: Loras, tmp_path: Path) -> None:
    adapters = loras(4)
    described = with_vectors(dense, adapters, tmp_path, gate="phatgoose")
    model = made(tmp_path, "own", described)
    files = [load_file(tmp_path / f"vectors{number}.safetensors") for number in range(4)]
    generator = torch.Generator().manual_seed(5)
    for name, module in list(mixtures(model))[:4]:
        width = module.in_features
        seen = 0.3 + torch.randn(10_000, width, generator=generator).double()
        rows = torch.stack([file[name] for file in files]).double()
        norm = torch.nn.functional.layer_norm
        scores = norm(seen, (width,)) @ norm(rows, (width,)).T / width**0.5
        best = scores.softmax(-1).topk(2, -1)
        wanted = torch.zeros_like(scores).scatter(
            -1, best.indices, best.values / best.values.sum(-1, keepdim=True)
        )
        with torch.no_grad():
            found = module.route(seen.float()).double()
        assert ((found > 0) == (wanted > 0)).all(-1).sum() >= 9_999  # but for ties in fp32
        assert torch.allclose(found, wanted, atol=1e-3)


def test_a_request_may_say_what_it_is_about(dense: Dense, loras: Loras, tmp_path: Path) -> None:
    adapters = loras(3)
    tasks = {"e0": [1.0, 0.0, 0.0], "e1": [0.0, 2.0, 0.0], "e2": [0.0, 0.0, 3.0]}
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    gate = {"method": "glider", "tasks": str(tmp_path / "tasks.json"), "scale": 100.0}
    described = with_vectors(dense, adapters, tmp_path, gate=gate, experts_per_token=1)
    model = made(tmp_path, "glider", described)
    described["moe"]["gate"] = "phatgoose"
    plain = logits(made(tmp_path, "phatgoose", described))
    assert torch.equal(logits(model), plain)
    model.set_task([0.0, 5.0, 0.0])
    about = logits(model)
    assert torch.allclose(about, merged(dense("llama"), adapters[1:2], [1.0]), atol=1e-5)
    # Each of the batch its own, also with beams.
    model.set_task(torch.tensor([[0.0, 5.0, 0.0], [1.0, 0.0, 0.0]]))
    found = logits(model)
    assert torch.allclose(found[0], about[0], atol=1e-5)
    other = merged(dense("llama"), adapters[:1], [1.0])
    assert torch.allclose(found[1], other[1], atol=1e-5)
    text = model.generate(tokens()[:, :4], max_new_tokens=3, num_beams=2, do_sample=False)
    assert text.shape[0] == 2
    model.config.task_scale = 0.0
    model.set_task([0.0, 5.0, 0.0])
    assert torch.allclose(logits(model), plain, atol=1e-6)
    model.set_task(None)
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "olmo2", "granite"])
def test_it_generates_and_is_saved_and_loaded_again(
    dense: Dense, loras: Loras, tmp_path: Path, family: str
) -> None:
    model = made(tmp_path, "own", recipe(dense(family), loras(2, family), gate="arrow"))
    text = model.generate(tokens()[:, :4], max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert text.shape == (2, 9)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "again"))
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    stored = load_file(dense(family) / "model.safetensors")
    assert all(torch.equal(one[name], stored[name]) for name in stored)


def test_half_precision_and_what_is_told(dense: Dense, loras: Loras, tmp_path: Path) -> None:
    adapters = loras(2)
    described = recipe(dense("llama"), adapters)
    described["output"] = {"dtype": "bfloat16"}
    api.run(described, tmp_path / "own")
    stored = load_file(tmp_path / "own" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    name = "model.layers.1.mlp.up_proj"
    whole = load_file(adapters[1] / "adapter_model.safetensors")
    a, b = (whole[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    assert torch.equal(stored[f"{name}.experts_a"][1], a.bfloat16())
    assert torch.equal(stored[f"{name}.experts_b"][1], (2 * b).bfloat16())
    manifest = json.loads((tmp_path / "own" / "moe_manifest.json").read_text())
    assert manifest["gate"] == {"method": "arrow", "params": {}}
    assert len(manifest["modules"]) == 12
    assert "trust_remote_code=True" in (tmp_path / "own" / "README.md").read_text()
    lock = (tmp_path / "own" / "recipe.lock.yaml").read_text()
    assert "modeling_lora_moe.py" in lock
    for file in (tmp_path / "own").glob("*.py"):
        assert "mergekit" not in file.read_text()
    report = check_model(resolve(str(tmp_path / "own"), relative_to=tmp_path))
    assert [report.verdict(loader) for loader in ("transformers", "vllm", "llama.cpp")] == [
        "same", "unknown", "fails",
    ]  # fmt: skip


def test_other_layers_are_merged_by_steps(dense: Dense, loras: Loras, tmp_path: Path) -> None:
    adapters = loras(2)
    described = recipe(dense("llama"), adapters, gate="zeros", experts_per_token=2, layers="1-")
    with pytest.raises(RecipeError, match="adapters change tensors that no token is routed for"):
        api.plan(described)
    described["steps"] = [{"task_arithmetic": {"normalize": True}}]
    model = made(tmp_path, "own", described)
    assert all(".layers.0." not in name for name, _ in mixtures(model))
    assert torch.allclose(logits(model), merged(dense("llama"), adapters, [0.5, 0.5]), atol=1e-5)


def test_broken_factors_are_refused(dense: Dense, loras: Loras, tmp_path: Path) -> None:
    adapters = loras(2)
    file = adapters[0] / "adapter_model.safetensors"
    stored = load_file(file)
    next(iter(stored.values()))[0, 0] = float("nan")
    save_file(stored, file)
    with pytest.raises(DataError, match="`e0`"):
        api.run(recipe(dense("llama"), adapters), tmp_path / "own")


def test_what_no_mixture_can_be_is_refused(dense: Dense, loras: Loras, tmp_path: Path) -> None:
    adapters, base = loras(2), dense("llama")
    dora = save_lora(base, tmp_path / "dora", use_dora=True)
    (tmp_path / "tasks.json").write_text(json.dumps({"e0": [1, 2]}))
    few = vectors(dense, tmp_path, 1)[0]
    save_file({"model.layers.0.mlp.up_proj": torch.ones(31)}, few)
    glider = {"method": "glider", "tasks": str(tmp_path / "tasks.json")}
    entries = [{"expert": f"e{n}", "rows": str(few)} for n in range(2)]
    for moe, message in (
        ({"gate": "arow"}, "did you mean `arrow`?"),
        ({"gate": {"method": "arrow", "temperature": 0}}, "`temperature` of the gate `arrow` is 0"),
        ({"gate": "zeros", "experts_per_token": 1}, "write `experts_per_token: 2` for the mean"),
        ({"experts_per_token": 3}, "tokens cannot pass 3 of 2 experts"),
        ({"gate": "phatgoose"}, "expert `e0` has no vectors"),
        ({"gate": "phatgoose", "experts": entries}, "`31` lacks"),
        ({"gate": "glider"}, "the gate `glider` needs `tasks`"),
        ({"gate": glider, "experts": entries}, "has no embedding of `e1`"),
        ({"shared": "base"}, "`moe.shared` says nothing to adapters"),
        ({"experts": [{"expert": "e0", "prompts": ["a"]}, "e1"]}, "`prompts` says nothing"),
        ({"experts": ["e0", "e0"]}, "all 2 experts are one adapter"),
        ({"experts": ["e0", "base"]}, "expert `base` is a model"),
        ({"carve": {"experts": 4, "experts_per_token": 2, "method": "random", "router": "random"}},
         "nothing is carved into it"),
    ):  # fmt: skip
        described = recipe(base, adapters, **moe)
        if "carve" in moe:
            del described["experts"]
        with pytest.raises(RecipeError) as caught:
            api.plan(described)
        found = str(caught.value)
        assert message.replace("`31` lacks", "lacks vectors of modules") in found
    with pytest.raises(RecipeError, match="adapter `e1` holds DoRA"):
        api.plan(recipe(base, [adapters[0], dora]))
    with pytest.raises(RecipeError, match="write `target: lora_moe`, or leave `rows` out"):
        api.plan(recipe(base, adapters, target="mixtral", gate="random", experts=entries))
