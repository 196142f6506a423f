"""Counting what is not zero, of a merge that was made sparse too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from mergekit_lite import api
from mergekit_lite.cli.main import main
from mergekit_lite.errors import RecipeError
from mergekit_lite.report import density
from mergekit_lite.report.density import Density, densities
from mergekit_lite.sources import resolve
from tests.checkpoints import read_weights, write_weights


def counted(folder: Path) -> dict[str, Density]:
    return densities(resolve(str(folder), relative_to=Path()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_are_counted_of_either_sign(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(density, "CHUNK", 8)  # several tiles
    tensors = {
        "half": torch.tensor([[0, 1, -2, -0.0], [1e-3, 0, 0, 5]] * 3),
        "dense": torch.tensor([[1.0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]),
        "odd": torch.zeros(2, 3),
        "norm": torch.tensor([0.0, 1, 0]),
    }
    write_weights(tmp_path, {name: value.to(dtype) for name, value in tensors.items()})
    (tmp_path / "config.json").write_text("{}")
    assert counted(tmp_path) == {
        "half": Density(1, 24, 12, 1),
        "dense": Density(1, 12, 4, 0),
        "odd": Density(1, 6, 0, 0),
        "norm": Density(1, 3, 1, 0),
    }


@pytest.mark.parametrize(
    ("step", "part"), [({"n": 2, "m": 4}, 0.5), ({"density": 0.25}, 0.25), ({"unit": "row"}, 0.5)]
)
def test_a_merge_is_made_sparse_in_the_same_run(
    step: dict[str, Any],
    part: float,
    tmp_path: Path,
    base_folder: Path,
    expert_folders: dict[str, Path],
) -> None:
    merge = {
        "base": str(base_folder),
        "experts": {"math": {"model": str(expert_folders["math"])}},
        "steps": [{"task_arithmetic": {"lambda": 0.5}}],
    }
    api.run(merge, tmp_path / "dense")
    sparse = {
        "base": str(base_folder),
        "experts": {"merged": {"model": "@merged"}},
        "steps": [{"sparsify": step}],
        "stages": {"merged": merge},
    }
    api.run(sparse, tmp_path / "sparse")
    before, after = read_weights(tmp_path / "dense"), read_weights(tmp_path / "sparse")
    found = counted(tmp_path / "sparse")
    for name, value in after.items():
        is_spared = value.dim() < 2 or "embed" in name or "lm_head" in name
        if is_spared:
            assert torch.equal(value, before[name]), name
            continue
        kept = value != 0
        assert torch.equal(value[kept], before[name][kept]), name
        assert before[name][kept].abs().min() > 0
        assert found[name].density == pytest.approx(part, abs=0.01), name
        assert found[name].two_of_four == ("n" in step), name


def test_the_verb_prints_a_table_and_json(base_folder: Path) -> None:
    runner = CliRunner()
    text = runner.invoke(main, ["inspect", str(base_folder), "--density"])
    assert text.exit_code == 0
    assert "all" in text.output
    assert "2:4" in text.output
    told = runner.invoke(main, ["inspect", str(base_folder), "--density", "--json"])
    total = json.loads(told.output)["roles"]["all"]
    assert total["entries"] == sum(v.numel() for v in read_weights(base_folder).values())
    assert total["density"] > 0.9


def test_what_has_no_weights_is_refused() -> None:
    with pytest.raises(RecipeError, match="no float weights"):
        densities(resolve("zoo:smol-german", relative_to=Path()))
