"""Adapters folded, cut down and split off."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mergekit_lite
from mergekit_lite.adapters.mask import top_of_rows
from mergekit_lite.adapters.split import split
from mergekit_lite.api import corda_split, fold_adapters, rose_mask
from mergekit_lite.cli.adapter import command
from mergekit_lite.errors import RecipeError
from tests.checkpoints import tiny_llama
from tests.engine.test_adapters import adapt
from tests.engine.test_fuse import change

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "base", dtype="bfloat16", tied=False)
    for name in ("one", "two"):
        adapt(tmp_path / "base", tmp_path / name, r=4, target_modules=["q_proj", "down_proj"])
        change(tmp_path / name, name)
    return tmp_path


def delta(folder: Path, scale: float = 2.0) -> torch.Tensor:
    """Return scale * B @ A of the first query projection."""
    stored = load_file(folder / "adapter_model.safetensors")
    a, b = (stored[f"base_model.model.{Q}.lora_{x}.weight"].float() for x in "AB")
    return scale * (b @ a)


def test_folds_are_rounded_one_by_one_and_their_loss_told(root: Path) -> None:
    small = load_file(root / "two" / "adapter_model.safetensors")
    save_file({k: 0.02 * v for k, v in small.items()}, root / "two" / "adapter_model.safetensors")
    found = fold_adapters(
        str(root / "base"), [str(root / "one"), str(root / "two")], root / "folded"
    )
    weight = load_file(root / "base" / "model.safetensors")[f"{Q}.weight"]
    first = (weight.float() + delta(root / "one")).bfloat16()
    second = (first.float() + delta(root / "two")).bfloat16()
    got = load_file(root / "folded" / "model.safetensors")
    assert (got[f"{Q}.weight"] == second).float().mean() > 0.99  # sums of ranks in another order
    torch.testing.assert_close(got[f"{Q}.weight"], second, rtol=0.01, atol=1e-6)
    assert [one.expert for one in found] == ["fold1", "fold2"]
    lost = (second == first).float().mean()
    # All modules together, of which this is one.
    assert found[1].lost == pytest.approx(float(lost), abs=0.15)
    assert found[1].lost > 10 * found[0].lost
    assert 0 < found[0].error < 0.01 < found[1].error


def test_what_is_kept_of_rows_and_columns(root: Path) -> None:
    shares = rose_mask(str(root / "one"), root / "masked", keep=0.25)
    before, after = (
        load_file(root / name / "adapter_model.safetensors") for name in ("one", "masked")
    )
    config = "adapter_config.json"
    assert (root / "one" / config).read_bytes() == (root / "masked" / config).read_bytes()
    assert shares.keys() == before.keys()
    for name, value in before.items():
        rows = value if ".lora_A" in name else value.T
        got = after[name] if ".lora_A" in name else after[name].T
        count = rows.shape[1] // 4
        for row, kept in zip(rows, got, strict=True):
            wanted = torch.zeros_like(row)
            largest = row.abs().topk(count).indices
            wanted[largest] = row[largest]
            assert torch.equal(kept, wanted)


def test_of_equal_entries_the_first_are_kept_and_one_at_least() -> None:
    rows = np.array([[1, 2, 2, 2], [0, 0, 0, 0]], np.float32)
    assert top_of_rows(rows, 0.5).tolist() == [
        [False, True, True, False],
        [True, True, False, False],
    ]
    assert top_of_rows(rows, 0.01).sum(axis=1).tolist() == [1, 1]
    assert top_of_rows(rows, 1.0).all()


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_a_split_and_the_model_without_it_make_the_model(root: Path, method: str) -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(100, 32, generator=generator) * torch.linspace(0.1, 3, 32)
    gram = inputs.T @ inputs / 100
    save_file({f"{Q}.weight": gram, "lm_head.weight": gram.clone()}, root / "grams.safetensors")
    tiny_llama(root / "model", dtype="float32", tied=False)
    grams = root / "grams.safetensors"
    assert corda_split(str(root / "model"), grams, root / "start", rank=5, method=method) == [Q]
    recipe = {
        "base": str(root / "model"),
        "experts": {"start": {"lora": str(root / "start"), "weight": -1}},
        "steps": ["task_arithmetic"],
    }
    mergekit_lite.run(recipe, root / "frozen")
    whole, frozen = (
        load_file(root / n / "model.safetensors")[f"{Q}.weight"] for n in ("model", "frozen")
    )
    part = delta(root / "start", 1.0)
    torch.testing.assert_close(frozen + part, whole)
    # In the metric of the inputs the first terms hold most of what the layer gives, the last least.
    ways = {way: split(whole.double(), gram.double(), 5, way) for way in ("ipm", "kpm")}  # type: ignore[arg-type]
    sizes = {way: float((inputs.double() @ (b @ a).T).norm()) for way, (b, a) in ways.items()}
    assert sizes["ipm"] > 3 * sizes["kpm"]
    b, a = split(whole.double(), gram.double(), 32, "ipm")
    torch.testing.assert_close(b @ a, whole.double(), rtol=1e-9, atol=1e-12)
    assert json.loads((root / "start" / "adapter_config.json").read_text())["r"] == 5


def test_matrices_that_do_not_fit_are_all_told(root: Path) -> None:
    grams = root / "grams.safetensors"
    save_file({f"{Q}.weight": torch.eye(8)}, grams)
    with pytest.raises(RecipeError, match="not 32 x 32"):
        corda_split(str(root / "base"), grams, root / "start")
    save_file({f"{Q}.weight": torch.eye(32)}, grams)
    with pytest.raises(RecipeError, match="rank 40 is more"):
        corda_split(str(root / "base"), grams, root / "start", rank=40)
    save_file({"other.weight": torch.eye(32)}, grams)
    with pytest.raises(RecipeError, match="no linear layer"):
        corda_split(str(root / "base"), grams, root / "start")
    assert not (root / "start").exists()


def test_the_verbs(root: Path) -> None:
    run = CliRunner()
    one = str(root / "one")
    done = run.invoke(command, ["rose-mask", one, "-o", str(root / "m"), "--keep", "0.5", "--json"])
    assert done.exit_code == 0
    assert set(json.loads(done.stdout).values()) == {0.5}
    done = run.invoke(command, ["fold", str(root / "base"), one, "-o", str(root / "f"), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)[0]["expert"] == "fold1"
    assert run.invoke(command, ["rose-mask", one]).exit_code == 2
    assert run.invoke(command, ["rose-mask", one, "-o", "x", "--keep", "0"]).exit_code == 2
