"""Models with code of their own load in transformers alone and keep every identity."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from mergekit_lite import api
from mergekit_lite.errors import RecipeError
from mergekit_lite.moe.compat import check_model
from mergekit_lite.sources import resolve
from tests.moe.dense import tokens
from tests.moe.own_code import load, logits

Dense = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("modules_of_their_own")


def recipe(dense: Dense, family: str = "llama", **moe: object) -> dict[str, Any]:
    experts = {f"e{seed}": {"model": str(dense(family, seed))} for seed in (1, 2, 3)}
    return {
        "base": str(dense(family)),
        "experts": experts,
        "moe": {
            "target": "routed",
            "experts": list(experts),
            "gate": {"method": "random", "std": 1.0},
            **moe,
        },
    }


def made(tmp_path: Path, name: str, described: dict[str, Any]) -> Any:
    api.run(described, tmp_path / name)
    return load(tmp_path / name)


def layers(model: Any) -> Iterator[Any]:
    for layer in model.model.layers:
        yield layer.mlp


@pytest.mark.parametrize(
    ("family", "stock"), [("llama", "mixtral"), ("mistral", "mixtral"), ("qwen3", "qwen3_moe")]
)
def test_it_computes_what_the_stock_class_does(
    dense: Dense, tmp_path: Path, family: str, stock: str
) -> None:
    model = made(tmp_path, "own", recipe(dense, family))
    api.run(recipe(dense, family, target=stock), tmp_path / "stock")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "stock").eval()
    # Gates are drawn by the tensor's name, and names differ.
    with torch.no_grad():
        for own, theirs in zip(layers(model), layers(other), strict=True):
            own.gate.weight.copy_(theirs.gate.weight)
    assert torch.allclose(logits(model), logits(other), atol=5e-6)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_it_generates_and_is_saved_and_loaded_again(
    dense: Dense, tmp_path: Path, family: str
) -> None:
    """Shows V15."""
    routing = {"null_experts": 2, "skip": 0.1}
    described = recipe(dense, family, layers="1-", routing=routing, experts_per_token=3)
    model = made(tmp_path, "own", described)
    text = model.generate(tokens()[:, :4], max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert text.shape == (2, 9)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))
    with (
        safe_open(tmp_path / "own" / "model.safetensors", "pt") as one,
        safe_open(tmp_path / "again" / "model.safetensors", "pt") as two,
    ):
        assert set(one.keys()) == set(two.keys())
        assert all(torch.equal(one.get_tensor(n), two.get_tensor(n)) for n in set(one.keys()))
    # The first layer is the dense one that it was.
    assert hasattr(model.model.layers[0].mlp, "gate_proj")


def test_identical_experts_are_the_dense_model(dense: Dense, tmp_path: Path) -> None:
    described = recipe(dense, experts=["base"] * 3, for_training=True)
    plain = AutoModelForCausalLM.from_pretrained(dense("llama")).eval()
    assert torch.allclose(logits(made(tmp_path, "own", described)), logits(plain), atol=5e-6)


def test_nulls_that_are_never_chosen_change_nothing(dense: Dense, tmp_path: Path) -> None:
    plain = made(tmp_path, "plain", recipe(dense))
    nulls = made(tmp_path, "nulls", recipe(dense, routing={"null_experts": 2}))
    before = logits(nulls)
    for mlp in layers(nulls):
        # Minus infinity, whatever the sign of the hidden state.
        mlp.gate.null_weight = None
    assert torch.equal(logits(nulls), logits(plain))
    assert not torch.allclose(before, logits(plain), atol=1e-3)


def test_nulls_by_hand(dense: Dense, tmp_path: Path) -> None:
    model = made(tmp_path, "own", recipe(dense, routing={"null_experts": 2}))
    gate = next(layers(model)).gate
    with torch.no_grad():
        gate.weight.zero_()
        gate.weight[:, 0] = torch.tensor([3.0, 1.0, 2.0])
        gate.null_weight.zero_()
        gate.null_weight[:, 0] = torch.tensor([2.5, -9.0])
        hidden = torch.zeros(2, gate.weight.shape[1])
        hidden[0, 0], hidden[1, 0] = 1.0, -1.0
        weights, rows = gate(hidden)
    # Best two: expert 0 and a null; then a null and expert 1, by logits 9 and -1.
    assert rows[0, 0] == 0
    assert weights[0].tolist() == [1.0, 0.0]
    assert rows[1, 1] == 1
    assert weights[1].tolist() == [0.0, 1.0]


def test_all_of_the_mass_is_all_experts(dense: Dense, tmp_path: Path) -> None:
    one = made(tmp_path, "p", recipe(dense, routing={"top_p": 1.0}))
    everyone = made(tmp_path, "all", recipe(dense, experts_per_token=3))
    assert torch.allclose(logits(one), logits(everyone), atol=5e-6)
    little = made(tmp_path, "little", recipe(dense, routing={"top_p": 1e-6}))
    first = made(tmp_path, "first", recipe(dense, experts_per_token=1))
    assert torch.allclose(logits(little), logits(first), atol=5e-6)


def test_the_mass_by_hand(dense: Dense, tmp_path: Path) -> None:
    gate = next(layers(made(tmp_path, "own", recipe(dense, routing={"top_p": 0.6})))).gate
    with torch.no_grad():
        gate.weight.zero_()
        gate.weight[:, 0] = torch.tensor([0.2, 0.5, 0.3]).log()
        hidden = torch.zeros(1, gate.weight.shape[1])
        hidden[0, 0] = 1.0
        weights, rows = gate(hidden)
    # 0.5 is not more than 0.6, with 0.3 it is: 0.5 and 0.3 of 0.8.
    assert rows[0, :2].tolist() == [1, 2]
    assert weights[0].tolist() == pytest.approx([0.625, 0.375, 0.0])


def test_skipping(dense: Dense, tmp_path: Path) -> None:
    plain = made(tmp_path, "plain", recipe(dense))
    none = made(tmp_path, "none", recipe(dense, routing={"skip": 0.0}))
    assert torch.equal(logits(none), logits(plain))
    skip = made(tmp_path, "some", recipe(dense, routing={"skip": [0.5, 0.0, 0.9]}))
    assert [mlp.gate.beta for mlp in layers(skip)] == [0.5, 0.0, 0.9]
    hidden = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = (next(layers(model)).gate(hidden)[0] for model in (plain, skip))
    kept = before[:, 1] >= 0.5 * before[:, 0]
    assert 0 < kept.sum() < 50
    assert torch.equal(after[kept], before[kept])
    assert torch.equal(after[~kept], torch.tensor([1.0, 0.0]).expand(int((~kept).sum()), 2))


def changed(folder: Path, **entries: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))
    return folder


def test_rows_that_stand_for_one_expert_add_up(dense: Dense, tmp_path: Path) -> None:
    plain = made(tmp_path, "own", recipe(dense))
    mapped = load(changed(tmp_path / "own", expert_map=[0, 1, 2]))
    assert torch.equal(logits(mapped), logits(plain))
    # Three rows for two experts are three experts of which two are alike.
    for model in (plain, mapped):
        for mlp in layers(model):
            mlp.experts[1].load_state_dict(mlp.experts[0].state_dict())
    for mlp in layers(mapped):
        mlp.expert_map = [0, 0, 2]
        del mlp.experts[1].gate_proj
    assert torch.allclose(logits(mapped), logits(plain), atol=5e-6)


def test_entries_of_one_model_share_its_expert(dense: Dense, tmp_path: Path) -> None:
    described = recipe(dense, experts=["e1", "e2", "e1"], experts_per_token=3)
    apart = made(tmp_path, "apart", described)
    described["moe"]["routing"] = {"share": True}
    shared = made(tmp_path, "shared", described)
    assert shared.config.expert_map == [0, 1, 0]
    assert (shared.config.num_experts, apart.config.num_experts) == (2, 3)
    assert all(len(mlp.experts) == 2 and mlp.gate.weight.shape[0] == 3 for mlp in layers(shared))
    assert torch.allclose(logits(shared), logits(apart), atol=5e-6)
    parameters = json.loads((tmp_path / "shared" / "moe_manifest.json").read_text())["parameters"]
    assert (
        parameters["total"] == parameters["active"] == sum(p.numel() for p in shared.parameters())
    )
    report = check_model(resolve(str(tmp_path / "shared"), relative_to=tmp_path))
    assert report.verdict("transformers") == "same"


def test_each_layer_may_have_a_map_of_its_own(dense: Dense, tmp_path: Path) -> None:
    one = made(tmp_path, "own", recipe(dense))
    turned = load(changed(tmp_path / "own", expert_map=[[0, 1, 2], [1, 2, 0], [0, 1, 2]]))
    with torch.no_grad():
        gate = list(layers(one))[1].gate.weight
        gate.copy_(gate[[2, 0, 1]].clone())
    assert torch.allclose(logits(turned), logits(one), atol=5e-6)


def test_carved_experts_that_all_fire_are_the_dense_layer(dense: Dense, tmp_path: Path) -> None:
    model = made(tmp_path, "own", recipe(dense))
    kind = type(next(layers(model)))
    config = model.config
    config.router, config.num_experts_per_tok = "cmoe", 3
    config.moe_intermediate_size, config.shared_intermediate_size = 12, 12
    whole = AutoModelForCausalLM.from_pretrained(dense("llama")).model.layers[0].mlp
    carved = kind(config, 0)
    parts = [carved.shared_experts, *carved.experts]
    hidden = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for number, part in enumerate(parts):
            own = slice(12 * number, 12 * number + 12)
            part.gate_proj.weight.copy_(whole.gate_proj.weight[own])
            part.up_proj.weight.copy_(whole.up_proj.weight[own])
            part.down_proj.weight.copy_(whole.down_proj.weight[:, own])
        for rows in (carved.gate.gate_weight, carved.gate.up_weight):
            torch.nn.init.normal_(rows)
        assert torch.allclose(carved(hidden), whole(hidden), atol=5e-6)
        carved.gate.count = 1
        carved.gate.bias[2] = 2.0
        weights, chosen = carved.gate(hidden.view(-1, 32))
        assert (chosen == 2).all()
        assert (weights == 1).all()


def test_what_stock_classes_cannot_do_is_refused(dense: Dense) -> None:
    for moe, message in (
        ({"target": "mixtral", "routing": {"top_p": 0.4}}, "write `target: routed`"),
        ({"routing": {"skip": [0.1, 0.2]}}, "`skip` has 2 numbers, and the model 3 layers"),
        ({"routing": {"top_p": 0.4}, "experts_per_token": 2}, "give one of them"),
        ({"routing": {"share": True}}, "no two entries of `moe.experts` name the same model"),
        (
            {"routing": {"share": True}, "experts": ["e1", "e1", "e2"], "split": 2},
            "`share` and `split` do not go together",
        ),
        ({"experts_per_token": 4}, "tokens cannot pass 4 of 3 experts"),
        ({"routing": {"topp": 0.4}}, "did you mean `top_p`?"),
        ({"routing": 3}, "`moe.routing` must be a mapping"),
    ):
        with pytest.raises(RecipeError) as caught:
            api.plan(recipe(dense, **moe))
        assert message in str(caught.value)


def test_the_card_says_how_it_is_loaded(dense: Dense, tmp_path: Path) -> None:
    api.run(recipe(dense), tmp_path / "own")
    assert "trust_remote_code=True" in (tmp_path / "own" / "README.md").read_text()
    lock = (tmp_path / "own" / "recipe.lock.yaml").read_text()
    assert "modeling_routed.py" in lock
    for file in tmp_path.glob("own/*.py"):
        assert "mergekit" not in file.read_text()
