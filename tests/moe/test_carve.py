"""A dense model that is carved into slices is the same model, as far as slices are active."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite import api
from mergekit_lite.errors import DataError, MergekitLiteError, RecipeError
from mergekit_lite.moe.families import FAMILIES
from mergekit_lite.moe.gate_cost import gate_cost
from mergekit_lite.plan.estimate import estimate
from tests.calibrate.conftest import save_model
from tests.moe.dense import apart, config, load, logits, make, shapes, tensor, tokens

Dense = Callable[..., Path]

TARGETS = [
    ("llama", "mixtral", 0),
    ("llama", "granitemoe", 0),
    ("llama", "granitemoeshared", 2),
    ("llama", "glm4_moe", 2),
    ("llama", "glm4_moe", 0),
    ("phi3", "mixtral", 0),
    ("qwen2", "qwen2_moe", 1),
    ("qwen2", "qwen2_moe", 0),
    ("qwen3", "qwen3_moe", 0),
    ("qwen3", "dots1", 1),
    ("olmo2", "flex_olmo", 0),
    ("ernie4_5", "ernie4_5_moe", 1),
    ("hunyuan_v1_dense", "hunyuan_v1_moe", 1),
    ("deepseek_v2", "deepseek_v2", 1),
    ("deepseek_v3", "deepseek_v3", 2),
]


def carved(base: Path | str, target: str = "auto", **carve: Any) -> dict[str, Any]:
    """Return a recipe that cuts layers into 5 slices, of which as many are active as can be."""
    asked = {"experts": 5, "method": "random", "router": "zeros", **carve}
    asked.setdefault("experts_per_token", asked["experts"] - asked.get("shared", 0))
    return {"base": str(base), "moe": {"target": target, "carve": asked}}


@pytest.mark.parametrize(("donor", "target", "shared"), TARGETS)
def test_with_all_slices_active_it_is_the_dense_model(
    dense: Dense, tmp_path: Path, donor: str, target: str, shared: int
) -> None:
    """Shows 4.5 and V7."""
    base, out = dense(donor), tmp_path / "carved"
    api.run(carved(base, target, shared=shared, method="kmeans"), out)
    assert apart(base, out) < 5e-6
    load(out).save_pretrained(tmp_path / "again")
    assert shapes(out) == shapes(tmp_path / "again")
    # 48 neurons in 5 slices: 10 at most, filled up to what loaders can multiply.
    names = FAMILIES[target].experts
    wide = "gate_up" if "gate_up" in names else "gate"
    rows = shapes(out)[f"model.layers.2.{names[wide].format(e=1)}"][-2]
    assert rows == (32 if wide == "gate_up" else 16)


def neurons(out: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads((out / "carve_neurons.json").read_text())
    return found


@pytest.mark.parametrize("method", ["random", "contiguous", "kmeans"])
def test_every_neuron_is_in_one_slice_with_its_own_weights(
    dense: Dense, tmp_path: Path, method: str
) -> None:
    base, out = dense("llama"), tmp_path / "carved"
    api.run(carved(base, "mixtral", method=method), out)
    orders = neurons(out)
    assert list(orders) == ["0", "1", "2"]
    for layer, order in orders.items():
        assert sorted(n for n in order if n < 48) == list(range(48))
        assert order.count(48) == len(order) - 48
        root, dense_root = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
        gate = torch.cat([tensor(out, f"{root}.experts.{e}.w1.weight") for e in range(5)])
        down = torch.cat([tensor(out, f"{root}.experts.{e}.w2.weight") for e in range(5)], dim=1)
        for place, neuron in enumerate(order):
            if neuron == 48:
                assert not gate[place].any()
                assert not down[:, place].any()
                continue
            assert torch.equal(gate[place], tensor(base, f"{dense_root}.gate_proj.weight")[neuron])
            column = tensor(base, f"{dense_root}.down_proj.weight")[:, neuron]
            assert torch.equal(down[:, place], 5 * column)
    assert (method == "contiguous") == (orders["1"][:10] == list(range(10)))


def masked(base: Path, out: Path, router: str, slices: int, shared: int, chosen: int) -> Any:
    """Return the logits of the dense model with all but the chosen slices switched off."""
    model = load(base)
    for index, layer in enumerate(model.model.layers):
        order = torch.tensor(neurons(out)[str(index)]).reshape(slices, -1)
        rows = tensor(out, f"model.layers.{index}.{router}").double()
        mlp = layer.mlp

        def forward(x: Any, mlp: Any = mlp, order: Any = order, rows: Any = rows) -> Any:
            best = (x.double() @ rows.T).topk(chosen, dim=-1).indices + shared
            on = torch.zeros(*x.shape[:-1], slices, dtype=torch.bool).scatter(-1, best, True)
            on[..., :shared] = True
            keep = torch.zeros(*x.shape[:-1], 49)
            keep[..., order.reshape(-1)] = on.repeat_interleave(order.shape[1], -1).float()
            return mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x) * keep[..., :48])

        mlp.forward = forward
    with torch.no_grad():
        return model(tokens()).logits


@pytest.mark.parametrize(
    ("donor", "target", "shared"),
    [
        ("llama", "mixtral", 0),
        ("llama", "granitemoeshared", 2),
        ("llama", "glm4_moe", 2),
        ("qwen2", "qwen2_moe", 2),
        ("qwen3", "qwen3_moe", 0),
        ("deepseek_v2", "deepseek_v2", 1),
    ],
)
def test_chosen_slices_count_in_full_as_epsilon_goes_to_zero(
    tmp_path: Path, donor: str, target: str, shared: int
) -> None:
    """Shows 4.4 and V7."""
    # One layer: in a second one, small errors of the first may turn a choice.
    base, errors = make(donor, tmp_path / "base", num_hidden_layers=1), list[float]()
    for power in (7, 9, 11):
        out = tmp_path / str(power)
        recipe = carved(
            base, target, experts=6, shared=shared, experts_per_token=2,
            router="random", epsilon=2.0**-power,
        )  # fmt: skip
        api.run(recipe, out)
        wanted = masked(base, out, FAMILIES[target].router, 6, shared, 2)
        errors.append(float((logits(out) - wanted).abs().max()))
    assert errors[2] < 0.02
    # The error is linear in epsilon: a quarter of it, a quarter of the error.
    assert 3.5 < errors[0] / errors[1] < 4.6
    assert 3.5 < errors[1] / errors[2] < 4.6


def test_epsilon_changes_no_choice_and_is_told(dense: Dense, tmp_path: Path) -> None:
    small = carved(dense("llama"), "mixtral", experts_per_token=2, router="param")
    api.run(small, tmp_path / "auto")
    small["moe"]["carve"]["epsilon"] = 1.0
    api.run(small, tmp_path / "one")
    name = "model.layers.1.block_sparse_moe.gate.weight"
    manifest = json.loads((tmp_path / "auto" / "moe_manifest.json").read_text())
    told = manifest["gate"]["made"]["layers"]["1"]["epsilon"]
    assert torch.equal(tensor(tmp_path / "auto", name), told * tensor(tmp_path / "one", name))
    assert 2**-24 <= told < 0.01
    largest = tensor(tmp_path / "one", name).norm(dim=1).max() * 32**0.5 * told
    assert 0.005 < largest <= 0.01
    assert manifest["carve"]["method"] == "random"


def test_half_precision_keeps_the_bytes_of_all_but_the_down_projection(tmp_path: Path) -> None:
    base, out = make("llama", tmp_path / "base", dtype="bfloat16"), tmp_path / "carved"
    api.run(carved(base, "glm4_moe", experts=4, shared=1, method="kmeans"), out)
    order = neurons(out)["0"]
    assert len(order) == 64
    root = "model.layers.0.mlp"
    for part in ("gate", "up", "down"):
        axis = 1 if part == "down" else 0
        shared = tensor(out, f"{root}.shared_experts.{part}_proj.weight")
        routed = [tensor(out, f"{root}.experts.{e}.{part}_proj.weight") for e in range(3)]
        whole = torch.cat([shared, *routed], dim=axis)
        kept = [place for place, neuron in enumerate(order) if neuron < 48]
        stored = tensor(base, f"{root}.{part}_proj.weight")
        wanted = stored.index_select(axis, torch.tensor([order[place] for place in kept]))
        assert torch.equal(whole.index_select(axis, torch.tensor(kept)), wanted)
    assert config(out)["routed_scaling_factor"] == 3.0


@pytest.mark.parametrize("method", ["cmoe", "coactivation", "gradient"])
def test_texts_decide_which_neurons_go_together(tmp_path: Path, method: str) -> None:
    base = save_model(tmp_path / "base", "llama")
    data = tmp_path / "texts.jsonl"
    lines = [" ".join(f"w{3 + (i * j) % 60}" for i in range(12)) for j in range(1, 30)]
    data.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    recipe = carved(
        base, "mixtral", experts_per_token=2, method=method, router="ridge", data=str(data)
    )
    api.run(recipe, tmp_path / "one")
    api.run(recipe, tmp_path / "two")
    made = json.loads((tmp_path / "one" / "moe_manifest.json").read_text())["gate"]["made"]
    assert made["tokens"] > 300
    for layer, order in neurons(tmp_path / "one").items():
        assert sorted(n for n in order if n < 48) == list(range(48))
        assert made["layers"][layer]["agreement"] > 0.5  # chance: 2 of 5
    for name in ("model.safetensors", "carve_neurons.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    recipe["moe"]["carve"] |= {"router": "zeros", "experts_per_token": 5}
    api.run(recipe, tmp_path / "all")
    assert neurons(tmp_path / "all") == neurons(tmp_path / "one")
    with torch.no_grad():
        whole, dense = (load(one)(tokens() % 64).logits for one in (tmp_path / "all", base))
    assert (whole - dense).abs().max() < 5e-6


REFUSED = [
    ({"experts": 60}, "48 neurons cannot be cut into 60 slices"),
    ({"shared": 5, "experts_per_token": 1}, "leaves none to choose"),
    ({"experts_per_token": 6}, "tokens cannot pass 6 of 5 slices"),
    ({"experts_per_token": 2}, "leave it to chance which 2 of 5 slices"),
    ({"router": "ridge"}, "`ridge` need texts"),
    ({"method": "cmoe"}, "`cmoe` need texts"),
    ({"method": "gradient"}, "`gradient` need texts"),
    ({"method": "coactivation"}, "`coactivation` need texts"),
    ({"method": "kmean"}, "did you mean `kmeans`"),
    ({"data": "x.txt"}, "says nothing to `random`"),
    ({"method": "cmoe", "data": "no.txt"}, "there is no file `no.txt`"),
    ({"epsilon": 0.3}, "neither `auto` nor a power of two"),
    ({"experts_per_tokens": 2}, "experts_per_token"),
]


@pytest.mark.parametrize(("carve", "text"), REFUSED)
def test_what_cannot_be_carved_is_refused(dense: Dense, carve: dict[str, Any], text: str) -> None:
    with pytest.raises(MergekitLiteError) as caught:
        api.plan(carved(dense("llama"), **carve))
    told = " ".join(f"{p.what} {p.hint}" for p in caught.value.problems)
    assert text in told
    assert isinstance(caught.value, RecipeError | DataError)


def test_other_keys_of_routed_models_are_refused_beside_it(dense: Dense) -> None:
    recipe = carved(dense("llama"))
    recipe["moe"]["gate"] = "zeros"
    recipe["experts"] = {"other": str(dense("llama", 1))}
    with pytest.raises(RecipeError) as caught:
        api.plan(recipe)
    told = [problem.what for problem in caught.value.problems]
    assert "`moe.carve` and `moe.gate` do not go together" in told
    assert "expert `other` has no part in cutting the base into slices" in told


def test_a_plan_counts_what_following_a_loss_back_keeps(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "llama")
    (tmp_path / "texts.txt").write_text("w4 w5 w6\n" * 1000)
    asked = carved(base, "mixtral", method="cmoe", data=str(tmp_path / "texts.txt"), tokens=2000)
    forth = api.plan(asked)
    asked["moe"]["carve"]["method"] = "gradient"
    back = api.plan(asked)
    asked["moe"]["carve"]["method"] = "coactivation"
    graph = api.plan(asked)
    # What enters each of 3 layers, of 2000 tokens with a quarter of padding, in fp32.
    needed = [estimate(plan, out=tmp_path / "out").disk_needed for plan in (back, forth)]
    assert needed[0] - needed[1] == 2000 * 32 * 4 * 3 * 5 // 4
    assert gate_cost(back).memory - gate_cost(forth).memory > 15 * 2000 * 32
    assert "followed back" in gate_cost(back).text
    assert gate_cost(graph).memory - gate_cost(forth).memory == 48 * 48 * 4


def test_a_shared_slice_asks_for_a_family_that_has_one(dense: Dense) -> None:
    assert api.plan(carved(dense("llama"), shared=1)).moe["target"] == "glm4_moe"
    assert api.plan(carved(dense("llama"))).moe["target"] == "mixtral"
    with pytest.raises(RecipeError, match="has no shared expert"):
        api.plan(carved(dense("llama"), "mixtral", shared=1))
