"""Gates that are made from texts, against the models that they are made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mergekit_lite import api
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.moe.gates._equations import Equations
from mergekit_lite.moe.gates._measure import LayerSums
from mergekit_lite.moe.gates._sidecar import read_equations
from tests.calibrate.conftest import save_model
from tests.calibrate.test_stream import loaded
from tests.checkpoints import perturbed, read_weights

PROMPTS = {
    "math": ["w4 w6 w8 w10", "w12 w4", "w6 w14 w8"],
    "code": ["w5 w7 w9", "w11 w5 w13 w7 w9"],
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama `base` and two experts of it, `math` and `code`."""
    home = tmp_path_factory.mktemp("experts")
    base = save_model(home / "base", "llama")
    for seed, name in enumerate(PROMPTS, 1):
        perturbed(base, home / name, seed=seed, scale=0.05)
    return home


def recipe(zoo: Path, gate: Any, **more: Any) -> dict[str, Any]:
    experts = [{"expert": name, "prompts": lines} for name, lines in PROMPTS.items()]
    return {
        "schema_version": 1,
        "base": str(zoo / "base"),
        "experts": {name: {"model": str(zoo / name)} for name in PROMPTS},
        "moe": {"target": "mixtral", "experts": experts, "gate": gate, **more},
    }


def routers(folder: Path) -> list[Tensor]:
    tensors = read_weights(folder)
    names = [f"model.layers.{i}.block_sparse_moe.gate.weight" for i in range(3)]
    return [tensors[name].double() for name in names]


def ids_of(prompt: str) -> Tensor:
    return torch.tensor([[int(word[1:]) for word in prompt.split()]])


def router_inputs(model: Any) -> list[list[Tensor]]:
    """Return, by expert and layer, what the feed-forward layers of a dense model are shown."""
    found = []
    for lines in PROMPTS.values():
        seen: dict[int, list[Tensor]] = {i: [] for i in range(3)}
        hooks = [
            layer.mlp.register_forward_pre_hook(
                lambda m, args, seen=seen[i]: seen.append(args[0][0].double())
            )
            for i, layer in enumerate(model.model.layers)
        ]
        with torch.inference_mode():
            for line in lines:
                model(input_ids=ids_of(line))
        for hook in hooks:
            hook.remove()
        found.append([torch.cat(seen[i]) for i in range(3)])
    return found


def fitted(domains: list[Tensor], **how: Any) -> np.ndarray[Any, Any]:
    sums = LayerSums(
        np.stack([(x.T @ x).numpy() for x in domains]),
        np.stack([x.sum(0).numpy() for x in domains]),
        np.zeros(1),
        np.array([float(len(x)) for x in domains]),
    )
    return Equations.of(sums, range(len(domains)), balanced=True).rows(0.01, normalize=False)


def direction(rows: Any) -> Any:
    value = torch.as_tensor(rows)
    return value / value.norm()


def test_ridge_is_what_prompts_give_by_default_and_is_fitted_to_what_routers_see(
    zoo: Path, tmp_path: Path
) -> None:
    api.run(recipe(zoo, None), tmp_path / "out")

    inputs = router_inputs(loaded(zoo / "base"))
    for layer, rows in enumerate(routers(tmp_path / "out")):
        wanted = fitted([domain[layer] for domain in inputs])
        torch.testing.assert_close(direction(rows), direction(wanted), rtol=1e-3, atol=1e-4)
        logits = torch.cat([x[layer] @ rows.T / len(x[layer]) ** 0.5 for x in inputs])
        apart = logits - logits.mean(1, keepdim=True)
        # Each expert's tokens count alike, so their squares are averaged by expert.
        assert apart.square().sum() / 4 == pytest.approx(1, rel=1e-3)
    manifest = json.loads((tmp_path / "out" / "moe_manifest.json").read_text())
    made = manifest["gate"]["made"]
    assert (manifest["gate"]["method"], made["tokens"], made["samples"]) == ("ridge", 17, 5)
    kept = read_equations(tmp_path / "out", 2)
    assert kept.counts.tolist() == [9.0, 8.0]
    with (tmp_path / "out" / "recipe.lock.yaml").open() as lock:
        assert "gate_sums/layer-00002.safetensors" in lock.read()


def test_an_expert_is_added_without_the_texts_of_the_others(zoo: Path, tmp_path: Path) -> None:
    whole = recipe(zoo, {"method": "ridge"}, experts_per_token=1)
    api.run(whole, tmp_path / "together")
    first = recipe(zoo, {"method": "ridge"}, experts_per_token=1)
    first["moe"]["experts"] = first["moe"]["experts"][:1]
    api.run(first, tmp_path / "first")
    later = recipe(
        zoo, {"method": "ridge", "earlier": str(tmp_path / "first")}, experts_per_token=1
    )
    later["moe"]["experts"][0] = "math"
    api.run(later, tmp_path / "later")
    for one, other in zip(routers(tmp_path / "together"), routers(tmp_path / "later"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert read_equations(tmp_path / "later", 1).counts.tolist() == [9.0, 8.0]
    later["moe"]["gate"] = {"method": "ridge", "earlier": str(tmp_path / "together")}
    with pytest.raises(RecipeError, match="has 2 experts already"):
        api.plan(later)
    later["moe"]["gate"] = {"method": "ridge", "earlier": str(tmp_path)}
    with pytest.raises(RecipeError, match="no sums of the routers of layer 0"):
        api.plan(later)
    later["base"], later["moe"]["gate"]["earlier"] = str(zoo / "code"), str(tmp_path / "first")
    with pytest.raises(DataError, match="another `base_sha256`"):
        api.run(later, tmp_path / "other")


def test_the_same_recipe_gives_the_same_gates(zoo: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        api.run(recipe(zoo, {"method": "ridge", "keep": False}), tmp_path / name)

    files = [tmp_path / name / "model.safetensors" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "one" / "gate_sums").exists()


def test_texts_may_go_through_the_expert_that_they_are_for(zoo: Path, tmp_path: Path) -> None:
    api.run(
        recipe(zoo, {"method": "ridge", "through": "expert"}) | {"steps": ["linear"]},
        tmp_path / "out",
    )

    inputs = []
    base, mean = read_weights(zoo / "base"), read_weights(tmp_path / "out")
    for number, name in enumerate(PROMPTS):
        model = loaded(zoo / name)
        own = read_weights(zoo / name)
        # What is not routed is the mean of the experts, as in the result.
        state = {
            key: own[key] if ".mlp." in key else mean[key] for key in base if "lm_head" not in key
        }
        model.load_state_dict(state, strict=False)
        inputs.append(router_inputs(model)[number])
    for layer, rows in enumerate(routers(tmp_path / "out")):
        wanted = fitted([domain[layer] for domain in inputs])
        torch.testing.assert_close(direction(rows), direction(wanted), rtol=1e-3, atol=1e-4)


def least_perplexed(zoo: Path, lines: list[str]) -> list[int]:
    """Return for each text which expert predicts it best, its layers beside the base's rest."""
    losses = []
    for name in PROMPTS:
        base, own = loaded(zoo / "base"), read_weights(zoo / name)
        base.load_state_dict({k: v for k, v in own.items() if ".mlp." in k}, strict=False)
        with torch.inference_mode():
            losses.append([float(base(input_ids=ids_of(x), labels=ids_of(x)).loss) for x in lines])
    return [int(a > b) for a, b in zip(*losses, strict=True)]


@pytest.mark.parametrize("given", ["to each its own", "all to both", "all to one"])
def test_texts_may_be_given_to_the_expert_that_predicts_them_best(
    zoo: Path, tmp_path: Path, given: str
) -> None:
    asked = recipe(zoo, {"method": "ridge", "labels": "perplexity"})
    lines = [line for lines in PROMPTS.values() for line in lines] + ["w20 w21 w40", "w33 w3 w8"]
    parts = {
        "to each its own": [lines[:3], lines[3:]],
        "all to both": [lines, lines],
        "all to one": [[], lines],
    }
    for expert, part in zip(asked["moe"]["experts"], parts[given], strict=True):
        expert["prompts"] = part
    best = least_perplexed(zoo, lines)
    assert set(best) == {0, 1}

    api.run(asked, tmp_path / "out")

    base = loaded(zoo / "base")
    seen: list[list[Tensor]] = [[], []]
    hook = base.model.layers[1].mlp.register_forward_pre_hook(
        lambda m, args: seen[best[len(seen[0]) + len(seen[1])]].append(args[0][0].double())
    )
    with torch.inference_mode():
        for line in lines:
            base(input_ids=ids_of(line))
    hook.remove()
    wanted = fitted([torch.cat(part) for part in seen])
    torch.testing.assert_close(
        direction(routers(tmp_path / "out")[1]), direction(wanted), rtol=1e-3, atol=1e-4
    )


def test_an_expert_that_predicts_no_text_best_is_named(zoo: Path, tmp_path: Path) -> None:
    asked = recipe(zoo, {"method": "ridge", "labels": "perplexity"})
    lines = PROMPTS["math"][:1]
    for expert in asked["moe"]["experts"]:
        expert["prompts"] = lines
    loser = list(PROMPTS)[1 - least_perplexed(zoo, lines)[0]]
    with pytest.raises(DataError, match=f"expert `{loser}` predicts no text best"):
        api.run(asked, tmp_path / "out")


def hidden_by_hand(folder: Path, lines: list[str]) -> Tensor:
    """Return mergekit's vectors: one padded batch of bf16, the last position of each prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token, tokenizer.padding_side = "<unk>", "left"
    texts = [tokenizer.bos_token + line for line in lines]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        states = torch.stack(model(**batch, output_hidden_states=True).hidden_states[:-1])
    return states[:, :, -1, :].sum(dim=1) / len(lines)


def test_hidden_gates_are_mergekit_s_bit_for_bit(zoo: Path, tmp_path: Path) -> None:
    asked = recipe(zoo, "hidden")
    asked["moe"]["experts"][0]["negative"] = PROMPTS["code"][:1]

    api.run(asked, tmp_path / "out")

    vectors = [hidden_by_hand(zoo / "base", lines) for lines in PROMPTS.values()]
    vectors[0] = vectors[0] - hidden_by_hand(zoo / "base", PROMPTS["code"][:1])
    unit = [v / v.norm(p=2, dim=-1, keepdim=True).clamp(min=1e-8) for v in vectors]
    for layer, rows in enumerate(routers(tmp_path / "out")):
        assert torch.equal(rows, torch.stack([v[layer] for v in unit]).double())


def test_cheap_embed_adds_up_the_embeddings_of_prompts(zoo: Path, tmp_path: Path) -> None:
    api.run(recipe(zoo, "cheap_embed"), tmp_path / "out")

    table = read_weights(zoo / "base")["model.embed_tokens.weight"].double()
    wanted = []
    for lines in PROMPTS.values():
        total = sum(table[[1, *ids_of(line)[0].tolist()]].sum(0) for line in lines)
        wanted.append(total / total.norm())  # type: ignore[union-attr]
    for rows in routers(tmp_path / "out"):
        torch.testing.assert_close(rows, torch.stack(wanted), rtol=1e-5, atol=1e-6)


def test_mean_and_arrow_rows_point_where_they_say(zoo: Path, tmp_path: Path) -> None:
    inputs = router_inputs(loaded(zoo / "base"))
    api.run(recipe(zoo, "router_input_mean"), tmp_path / "mean")
    api.run(recipe(zoo, "arrow"), tmp_path / "arrow")

    base = read_weights(zoo / "base")
    for layer in range(3):
        means = [(x[layer] / x[layer].norm(dim=1, keepdim=True)).mean(0) for x in inputs]
        wanted = torch.stack([m / m.norm() for m in means])
        rows = routers(tmp_path / "mean")[layer]
        torch.testing.assert_close(direction(rows), direction(wanted), rtol=1e-3, atol=1e-4)
        for number, name in enumerate(PROMPTS):
            own = read_weights(zoo / name)
            names = [f"model.layers.{layer}.mlp.{part}_proj.weight" for part in ("gate", "up")]
            change = torch.cat([own[n].double() - base[n].double() for n in names])
            row = direction(routers(tmp_path / "arrow")[layer][number])
            right = torch.linalg.svd(change)[2][0]
            # Power iteration has gone most of the way.
            assert (change @ row).norm() >= 0.97 * (change @ right).norm()
            assert (inputs[number][layer].sum(0) @ row) > 0


@pytest.mark.parametrize("how", [{"through": "expert"}, {"labels": "perplexity"}])
def test_texts_cannot_go_through_experts_that_are_parts_of_others(zoo: Path, how: Any) -> None:
    gate = {"method": "ridge", **how}
    with pytest.raises(RecipeError, match="`granitemoe` model stores all experts in one tensor"):
        api.plan(recipe(zoo, gate, target="granitemoe"))
    with pytest.raises(RecipeError, match="they are cut into slices"):
        api.plan(recipe(zoo, gate, split=2, experts_per_token=2))


def test_labels_by_perplexity_need_some_text_and_no_earlier_sums(zoo: Path) -> None:
    asked = recipe(zoo, {"method": "ridge", "labels": "perplexity", "earlier": "none"})
    asked["moe"]["experts"] = list(PROMPTS)
    with pytest.raises(RecipeError) as caught:
        api.plan(asked)
    told = [problem.what for problem in caught.value.problems]
    assert any("no expert has texts" in what for what in told)
    assert any("`earlier` keeps the texts of its experts" in what for what in told)


def test_texts_come_from_files_too_and_must_be_there(zoo: Path, tmp_path: Path) -> None:
    asked = recipe(zoo, "ridge")
    for expert in asked["moe"]["experts"]:
        lines = expert.pop("prompts")
        expert["data"] = str(tmp_path / f"{expert['expert']}.jsonl")
        text = "\n".join(json.dumps({"text": line}) for line in lines)
        Path(expert["data"]).write_text(text)
    api.run(asked, tmp_path / "files")
    api.run(recipe(zoo, "ridge"), tmp_path / "prompts")
    for rows, same in zip(routers(tmp_path / "files"), routers(tmp_path / "prompts"), strict=True):
        assert torch.equal(rows, same)

    for expert, name in zip(asked["moe"]["experts"], ("none.txt", "math.csv"), strict=True):
        expert["data"] = str(tmp_path / name)
    (tmp_path / "math.csv").write_text("w4")
    with pytest.raises(RecipeError) as caught:
        api.plan(asked)
    told = [problem.what for problem in caught.value.problems]
    assert told[0].startswith("there is no file `")
    assert told[1].endswith("math.csv`, the texts for expert `code`, is of no known kind")


def test_prompts_that_are_all_alike_tell_nothing_apart(zoo: Path) -> None:
    asked = recipe(zoo, "ridge")
    for expert in asked["moe"]["experts"]:
        expert["prompts"] = ["w4 w5"]
    with pytest.raises(RecipeError, match="have the same texts"):
        api.plan(asked)
