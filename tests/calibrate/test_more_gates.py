"""Gates with biases, of embeddings of texts, and of a wanted confidence, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from mergekit_lite import api
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.moe.gates.phatgoose import standardised, trained
from tests.calibrate.conftest import save_model
from tests.calibrate.test_gates import PROMPTS, direction, ids_of, recipe, router_inputs, routers
from tests.calibrate.test_stream import loaded
from tests.checkpoints import perturbed, read_weights


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama `base` and two experts of it, `math` and `code`."""
    home = tmp_path_factory.mktemp("more")
    base = save_model(home / "base", "llama")
    for seed, name in enumerate(PROMPTS, 1):
        perturbed(base, home / name, seed=seed, scale=0.05)
    return home


def test_routers_with_a_bias_choose_as_linear_discriminants_do(zoo: Path, tmp_path: Path) -> None:
    asked = recipe(zoo, {"method": "lda", "penalty": 0.5}, experts_per_token=1)
    asked["moe"]["target"] = "glm4_moe"
    api.run(asked, tmp_path / "out")

    domains = router_inputs(loaded(zoo / "base"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    for layer, block in enumerate(model.model.layers):
        own = [x[layer].numpy() for x in domains]
        means = np.stack([x.mean(0) for x in own])
        within = sum(np.cov(x.T, bias=True) for x in own) / 2
        within = within + 0.5 * np.trace(within) / len(within) * np.eye(len(within))
        tokens = np.concatenate(own)
        away = [tokens - mean for mean in means]
        scores = [-np.einsum("td,de,te->t", a, np.linalg.inv(within), a) for a in away]
        gate = block.mlp.gate
        assert gate.e_score_correction_bias.abs().max() > 1e-3
        with torch.inference_mode():
            logits = gate(torch.from_numpy(tokens).float()[None])[0]
        choice = (logits.sigmoid() + gate.e_score_correction_bias).argmax(1)
        assert choice.tolist() == np.argmax(scores, axis=0).tolist()
    made = json.loads((tmp_path / "out" / "moe_manifest.json").read_text())["gate"]["made"]
    assert (made["spread"], made["tokens"]) == (0.25, 17)


def test_families_without_a_bias_are_refused_by_name(zoo: Path) -> None:
    with pytest.raises(RecipeError, match="routers of a `mixtral` model have no bias") as caught:
        api.plan(recipe(zoo, "lda"))
    assert "glm4_moe, dots1, deepseek_v3, ernie4_5_moe" in str(caught.value.problems[0].hint)


def test_tokens_are_as_sure_of_their_expert_as_is_asked(zoo: Path, tmp_path: Path) -> None:
    api.run(recipe(zoo, {"method": "ridge", "confidence": 0.7}), tmp_path / "out")
    api.run(recipe(zoo, "ridge"), tmp_path / "usual")

    inputs = router_inputs(loaded(zoo / "base"))
    usual = routers(tmp_path / "usual")
    for layer, rows in enumerate(routers(tmp_path / "out")):
        tokens = torch.cat([x[layer] for x in inputs])
        assert float((tokens @ rows.T).softmax(1).max(1).values.mean()) == pytest.approx(0.7, 1e-3)
        torch.testing.assert_close(direction(rows), direction(usual[layer]), rtol=1e-4, atol=1e-5)


def test_a_confidence_that_cannot_be_is_refused(zoo: Path) -> None:
    def problems(**gate: Any) -> str:
        target = gate.pop("target", "mixtral")
        asked = recipe(zoo, {"method": "ridge", **gate})
        asked["moe"]["target"] = target
        with pytest.raises(RecipeError) as caught:
            api.plan(asked)
        return "\n".join(problem.what for problem in caught.value.problems)

    assert "`spread` and `confidence` both say" in problems(spread=1, confidence=0.7)
    assert "likeliest of 2 experts has more than 0.4" in problems(confidence=0.4)
    assert "`glm4_moe` model weighs experts by sigmoids" in problems(
        confidence=0.7, target="glm4_moe"
    )


def test_rows_may_be_embeddings_of_texts(zoo: Path, tmp_path: Path) -> None:
    api.run(recipe(zoo, "domain_embed"), tmp_path / "out")

    model, wanted = loaded(zoo / "base"), []
    for lines in PROMPTS.values():
        with torch.inference_mode():
            last = [model.model(input_ids=ids_of(x)).last_hidden_state[0].double() for x in lines]
        means = [each.mean(0) for each in last]
        total = sum(mean / mean.norm() for mean in means)
        wanted.append(total / total.norm())  # type: ignore[union-attr]
    for rows in routers(tmp_path / "out"):
        torch.testing.assert_close(rows, torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_embeddings_of_another_model_come_from_a_file(zoo: Path, tmp_path: Path) -> None:
    one, many = torch.randn(32), torch.randn(5, 32)
    save_file({"math": one, "code": many}, tmp_path / "grit.safetensors")
    gate = {"method": "domain_embed", "embeddings": str(tmp_path / "grit.safetensors")}
    asked = recipe(zoo, {**gate, "normalize": False})
    asked["moe"]["experts"] = list(PROMPTS)
    api.run(asked, tmp_path / "out")
    for rows in routers(tmp_path / "out"):
        torch.testing.assert_close(rows.float(), torch.stack([one, many.mean(0)]))

    save_file({"math": torch.randn(31)}, tmp_path / "grit.safetensors")
    with pytest.raises(RecipeError, match="no embedding for `math`: 31, wanted 32 numbers"):
        api.plan(asked)
    asked["moe"]["gate"]["embeddings"] = str(tmp_path / "none.safetensors")
    with pytest.raises(RecipeError):
        api.plan(asked)


def test_a_trained_gate_sees_its_own_expert_s_inputs_and_changes(zoo: Path, tmp_path: Path) -> None:
    api.run(recipe(zoo, {"method": "phatgoose", "steps": 12}), tmp_path / "out")
    api.run(recipe(zoo, {"method": "phatgoose", "steps": 12}), tmp_path / "again")

    base, found, spreads = loaded(zoo / "base"), [], []
    for number, name in enumerate(PROMPTS):
        model, own = loaded(zoo / "base"), read_weights(zoo / name)
        model.load_state_dict({k: v for k, v in own.items() if ".mlp." in k}, strict=False)
        x = router_inputs(model)[number][1]
        with torch.inference_mode():
            says, would = (m.model.layers[1].mlp(x.float()).double() for m in (model, base))
        found.append(trained(x.numpy(), (says - would).square().sum(1).numpy(), 12, 5e-3))
        spreads.append(float(x.std(1, correction=0).mean()))
    wanted = standardised(np.stack(found)) / np.mean(spreads)
    rows = routers(tmp_path / "out")[1]
    torch.testing.assert_close(rows, torch.from_numpy(wanted), rtol=1e-3, atol=1e-4)
    files = [tmp_path / name / "model.safetensors" for name in ("out", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    made = json.loads((tmp_path / "out" / "moe_manifest.json").read_text())["gate"]["made"]
    assert (made["steps"], made["tokens"], made["through"]) == (12, 17, "expert")


def test_nothing_is_trained_on_an_expert_that_changes_nothing(zoo: Path, tmp_path: Path) -> None:
    asked = recipe(zoo, "phatgoose")
    asked["moe"]["experts"][0]["expert"] = "base"
    with pytest.raises(RecipeError, match="expert `base` is the base, so there is nothing"):
        api.plan(asked)
    asked = recipe(zoo, "phatgoose")
    asked["experts"]["math"]["model"] = str(zoo / "base")
    with pytest.raises((RecipeError, DataError), match="there is nothing"):
        api.run(asked, tmp_path / "out")
    with pytest.raises(RecipeError, match="texts cannot be run through one expert alone"):
        api.plan(recipe(zoo, "phatgoose", target="granitemoe"))
