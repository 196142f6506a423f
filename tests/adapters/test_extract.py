"""Adapters taken out of fine-tuned models."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mergekit_lite
from mergekit_lite.api import extract_lora
from mergekit_lite.cli.extract_lora import command
from mergekit_lite.compress.low_rank import Wanted, factors
from mergekit_lite.errors import DataError, RecipeError
from tests.checkpoints import tiny_llama

Q = "model.layers.0.self_attn.q_proj"
EMBEDDING, NORM = "model.embed_tokens", "model.norm"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A base and a fine-tune: low rank in one layer, full rank in another, norm and embedding."""
    for name in ("base", "tuned"):
        tiny_llama(tmp_path / name, dtype="float32", tied=False)
    weights = load_file(tmp_path / "tuned" / "model.safetensors")
    generator = torch.Generator().manual_seed(2)

    def noise(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    weights[f"{Q}.weight"] += noise(32, 3) @ noise(3, 32)
    weights["model.layers.1.mlp.up_proj.weight"] += noise(64, 32)
    weights[f"{NORM}.weight"] += noise(32)
    weights[f"{EMBEDDING}.weight"][5] += 1
    write(tmp_path / "tuned", weights)
    return tmp_path


def write(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def differences(root: Path) -> dict[str, torch.Tensor]:
    base, tuned = (load_file(root / n / "model.safetensors") for n in ("base", "tuned"))
    return {name: tuned[name] - base[name] for name in base}


@pytest.mark.parametrize("exact", [False, True])
def test_a_high_rank_gives_the_model_back(root: Path, exact: bool) -> None:
    tuned = str(root / "tuned")
    found = extract_lora(tuned, str(root / "base"), root / "lora", rank=32, exact=exact)
    assert [one.name for one in found.modules] == [Q, "model.layers.1.mlp.up_proj"]
    assert [one.rank for one in found.modules] == [3, 32]
    assert set(found.saved) == {EMBEDDING, NORM}
    assert found.error < 1e-5
    recipe = {
        "base": str(root / "base"),
        "experts": {"a": {"lora": str(root / "lora")}},
        "steps": ["task_arithmetic"],
    }
    mergekit_lite.run(recipe, root / "back")
    got, wanted = (load_file(root / n / "model.safetensors") for n in ("back", "tuned"))
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_peft_loads_it(root: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    extract_lora(str(root / "tuned"), str(root / "base"), root / "lora", rank=40)
    config = json.loads((root / "lora" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert config["rank_pattern"] in ({Q: 3}, {"model.layers.1.mlp.up_proj": 32})
    base = AutoModelForCausalLM.from_pretrained(root / "base")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*keys.*")
        model = PeftModel.from_pretrained(base, root / "lora")
    state = model.merge_and_unload().state_dict()
    for name, value in load_file(root / "tuned" / "model.safetensors").items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)


def test_each_module_tells_what_it_lost(root: Path) -> None:
    found = extract_lora(str(root / "tuned"), str(root / "base"), root / "lora", rank=8)
    report = json.loads((root / "lora" / "extract_report.json").read_text())
    told = {one["name"]: one for one in report["modules"]}
    delta = differences(root)["model.layers.1.mlp.up_proj.weight"].double()
    s = torch.linalg.svdvals(delta)
    lost = float((s[8:].square().sum() / s.square().sum()).sqrt())
    up = told["model.layers.1.mlp.up_proj"]
    # Passes over the matrix bring a randomised SVD of noise, the hardest case, this near.
    assert lost <= up["error"] <= 1.02 * lost
    assert up["norm"] == pytest.approx(float(delta.norm()))
    assert told[Q]["error"] < 1e-5
    assert report["error"] == found.error


def test_energy_takes_the_least_rank_that_holds_it(root: Path) -> None:
    tuned, base = str(root / "tuned"), str(root / "base")
    found = extract_lora(tuned, base, root / "lora", energy=0.9, exact=True)
    s = torch.linalg.svdvals(differences(root)["model.layers.1.mlp.up_proj.weight"].double())
    held = s.square().cumsum(0) / s.square().sum()
    assert found.modules[1].rank == int((held < 0.9).sum()) + 1
    near = extract_lora(tuned, base, root / "near", energy=0.9)
    assert abs(near.modules[1].rank - found.modules[1].rank) <= 1
    few = extract_lora(tuned, base, root / "few", energy=0.9, max_rank=2)
    assert [one.rank for one in few.modules] == [2, 2]


def test_a_randomised_svd_of_a_low_rank_matrix_is_the_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((200, 90), (90, 200)):
        matrix = torch.randn(rows, 7, generator=generator) @ torch.randn(
            7, columns, generator=generator
        )
        b, a = factors(matrix, Wanted(16), "m")
        assert a.shape[0] == 7
        torch.testing.assert_close(b @ a, matrix, rtol=1e-4, atol=1e-4)
        again = factors(matrix, Wanted(16), "m")
        assert torch.equal(b, again[0])
    zero = factors(torch.zeros(8, 4), Wanted(2), "zero")
    assert zero[1].shape == (0, 4)


def test_the_same_bytes_whatever_the_threads(root: Path) -> None:
    for name, threads in (("one", 1), ("two", 3)):
        extract_lora(str(root / "tuned"), str(root / "base"), root / name, rank=4, threads=threads)
    one, two = (root / n / "adapter_model.safetensors" for n in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_what_has_no_place_in_an_adapter_leaves_nothing_behind(root: Path) -> None:
    for name in ("base", "tuned"):
        weights = load_file(root / name / "model.safetensors")
        weights["model.logit_scale"] = torch.full((3,), float(len(name)))
        write(root / name, weights)
    with pytest.raises(RecipeError, match=r"`model\.logit_scale` differs"):
        extract_lora(str(root / "tuned"), str(root / "base"), root / "lora", rank=4)
    assert sorted(path.name for path in root.iterdir()) == ["base", "tuned"]


def test_bad_input(root: Path) -> None:
    base = str(root / "base")
    tiny_llama(root / "copy", dtype="float32", tied=False)
    with pytest.raises(DataError, match="the model is its base"):
        extract_lora(str(root / "copy"), base, root / "lora")
    weights = load_file(root / "tuned" / "model.safetensors")
    weights[f"{Q}.weight"][0, 0] = float("nan")
    write(root / "tuned", weights)
    with pytest.raises(DataError, match="NaN"):
        extract_lora(str(root / "tuned"), base, root / "lora")
    assert not (root / "lora").exists()
    (root / "lora").mkdir()
    (root / "lora" / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError):
        extract_lora(str(root / "tuned"), base, root / "lora")


def test_the_verb(root: Path) -> None:
    arguments = [str(root / "tuned"), "--base", str(root / "base"), "-o", str(root / "lora")]
    done = CliRunner().invoke(command, [*arguments, "--rank", "4", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["modules"][0]["name"] == Q
    for wrong in (
        ["--energy", "1.5"],
        ["--rank", "0"],
        ["--rank", "2", "--energy", "0.5"],
        ["--max-rank", "3"],
    ):
        assert CliRunner().invoke(command, [*arguments, *wrong]).exit_code == 2
