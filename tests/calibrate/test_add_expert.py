"""An expert that joins a routed model without the texts of those that are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from mergekit_lite import api
from mergekit_lite.cli.main import main
from mergekit_lite.errors import DataError, MergekitLiteError, RecipeError, SourceError
from tests.calibrate.conftest import save_model
from tests.calibrate.test_gates import PROMPTS, recipe, routers
from tests.checkpoints import perturbed, read_weights

LAW = ["w20 w21 w22", "w30 w31"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama `base`, three experts of it, and `routed`: two of them over their mean."""
    home = tmp_path_factory.mktemp("adding")
    base = save_model(home / "base", "llama")
    for seed, name in enumerate([*PROMPTS, "law"], 1):
        perturbed(base, home / name, seed=seed, scale=0.05)
    api.run(two(home), home / "routed")
    return home


def two(home: Path, **gate: Any) -> dict[str, Any]:
    """Return a recipe of two experts whose other weights are the experts' mean."""
    asked = recipe(home, {"method": "ridge", "penalty": 0.1, **gate})
    return {**asked, "steps": [{"task_arithmetic": {"normalize": True}}]}


def test_the_routers_become_those_of_all_texts_and_all_else_stays(
    zoo: Path, tmp_path: Path
) -> None:
    api.add_expert(zoo / "routed", str(zoo / "law"), tmp_path / "out", prompts=LAW)

    batch = two(zoo)
    # The mean of the two, beside all three.
    weights = {"math": 1.0, "code": 1.0, "law": 0.0}
    batch["experts"]["law"] = {"model": str(zoo / "law")}
    batch["steps"] = [{"task_arithmetic": {"normalize": True, "weights": weights}}]
    batch["moe"] |= {
        "experts": [*batch["moe"]["experts"], {"expert": "law", "prompts": LAW}],
        "experts_per_token": 2,
    }
    api.run(batch, tmp_path / "batch")
    for one, other in zip(routers(tmp_path / "out"), routers(tmp_path / "batch"), strict=True):
        assert one.shape == (3, 32)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    before, after = (read_weights(zoo / "routed"), read_weights(tmp_path / "out"))
    kept = [name for name in before if "gate.weight" not in name]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    own = read_weights(zoo / "law")["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(after["model.layers.1.block_sparse_moe.experts.2.w3.weight"], own)
    manifest = json.loads((tmp_path / "out" / "moe_manifest.json").read_text())
    assert [one["expert"] for one in manifest["experts"]] == ["math", "code", "law"]
    assert manifest["experts_per_token"] == 2
    assert manifest["gate"]["params"]["penalty"] == 0.1


def test_one_after_the_other_as_verbs(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "law.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in LAW))
    saved = tmp_path / "recipe.yaml"
    first = ["moe", "add-expert", str(zoo / "routed"), str(zoo / "law"), "-o"]
    first += [str(tmp_path / "three"), "--data", str(tmp_path / "law.jsonl")]
    done = CliRunner().invoke(main, [*first, "--save-recipe", str(saved)])
    assert done.exit_code == 0, done.output
    assert yaml.safe_load(saved.read_text())["moe"]["experts"][2]["expert"] == "law"

    again = ["moe", "add-expert", str(tmp_path / "three"), str(zoo / "code"), "--name", "more"]
    again += ["--prompt", "w40 w41", "--prompt", "w42", "-o", str(tmp_path / "four")]
    done = CliRunner().invoke(main, again)
    assert done.exit_code == 0, done.output
    assert [rows.shape for rows in routers(tmp_path / "four")] == [(4, 32)] * 3
    expert = "model.layers.0.block_sparse_moe.experts.3.w1.weight"
    own = read_weights(zoo / "code")["model.layers.0.mlp.gate_proj.weight"]
    assert torch.equal(read_weights(tmp_path / "four")[expert], own)


def test_sums_of_other_weights_beside_the_experts_do_not_add_up(zoo: Path, tmp_path: Path) -> None:
    asked = two(zoo, earlier=str(zoo / "routed"))
    asked["experts"]["law"] = {"model": str(zoo / "law")}
    asked["moe"]["experts"].append({"expert": "law", "prompts": LAW})
    with pytest.raises(DataError, match="measured with other weights beside the experts"):
        api.run(asked, tmp_path / "out")


def refused(kind: type[MergekitLiteError], *args: Any, **how: Any) -> str:
    with pytest.raises(kind) as caught:
        api.add_expert(*args, **{"prompts": LAW, **how})
    return "\n".join(f"{p.what} {p.where}" for p in caught.value.problems)


def test_what_cannot_be_added_to_is_refused(zoo: Path, tmp_path: Path) -> None:
    out, law = tmp_path / "out", str(zoo / "law")
    assert "has no moe_manifest.json" in refused(SourceError, zoo / "base", law, out)
    text = refused(RecipeError, zoo / "routed", law, out, name="code")
    assert "the name `code` is in use" in text
    assert "what texts `law` is for" in refused(RecipeError, zoo / "routed", law, out, prompts=())
    api.run(two(zoo, keep=False), tmp_path / "bare")
    assert "no folder `gate_sums`" in refused(RecipeError, tmp_path / "bare", law, out)
    other = recipe(zoo, "router_input_mean")
    api.run(other, tmp_path / "mean")
    assert "made by `router_input_mean`" in refused(RecipeError, tmp_path / "mean", law, out)
    assert not out.exists()


def test_another_base_or_expert_is_told_by_its_bytes(zoo: Path, tmp_path: Path) -> None:
    for name in ("base", "math", "code"):
        shutil.copytree(zoo / name, tmp_path / name)
    home = Path("here")
    asked = recipe(home, "ridge")
    asked["base"], asked["experts"]["math"]["model"] = "base", "math"
    asked["experts"]["code"]["model"] = "code"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(asked))
    api.run(path, tmp_path / "routed")
    law = str(zoo / "law")
    with pytest.raises(SourceError):
        api.add_expert(tmp_path / "routed", law, tmp_path / "out", prompts=LAW)
    api.add_expert(tmp_path / "routed", law, tmp_path / "out", prompts=LAW, folder=tmp_path)

    perturbed(zoo / "base", tmp_path / "other", seed=9, scale=0.05)
    shutil.copyfile(
        tmp_path / "other" / "model.safetensors", tmp_path / "base" / "model.safetensors"
    )
    text = refused(DataError, tmp_path / "routed", law, tmp_path / "no", folder=tmp_path)
    assert "sha256 is" in text
    assert "base: model.safetensors" in text
