"""A source of another package: references it alone understands, bytes that are in no file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
import yaml

from mergekit_lite import api
from mergekit_lite.errors import MergekitLiteError
from mergekit_lite.export.verify import verify
from tests.checkpoints import read_weights

Pair = tuple[Path, Path]


@pytest.fixture
def compressed(pair: Pair, tmp_path: Path) -> Path:
    """The expert as a file that only the third party's source can read."""
    path = tmp_path / "expert.safetensors.gz"
    path.write_bytes(gzip.compress((pair[1] / "model.safetensors").read_bytes()))
    return path


def recipe(base: Path, expert: str, **step: object) -> dict[str, object]:
    return {
        "schema_version": 1,
        "base": str(base),
        "experts": {"x": {"model": expert, "weight": 0.5}},
        "steps": [step or {"task_arithmetic": {}}],
        "output": {"dtype": "float32"},
    }


@pytest.mark.usefixtures("kit")
def test_its_models_merge_like_local_ones(pair: Pair, compressed: Path, tmp_path: Path) -> None:
    api.run(recipe(pair[0], str(pair[1])), tmp_path / "local")
    api.run(recipe(pair[0], f"gzip:{compressed}"), tmp_path / "remote")
    local, remote = read_weights(tmp_path / "local"), read_weights(tmp_path / "remote")
    assert local.keys() == remote.keys()
    for name, value in local.items():
        assert torch.equal(remote[name], value)
    report = json.loads((tmp_path / "remote" / "merge_report.json").read_text())
    assert report["inputs"]["x"]["tensors_matched"] == len(local)


@pytest.mark.usefixtures("kit")
def test_its_bytes_are_copied_whole(pair: Pair, compressed: Path, tmp_path: Path) -> None:
    api.run(recipe(pair[0], f"gzip:{compressed}", take={"source": "x"}), tmp_path / "out")
    result, expert = read_weights(tmp_path / "out"), read_weights(pair[1])
    for name, value in expert.items():
        assert torch.equal(result[name], value)


@pytest.mark.usefixtures("kit")
def test_the_lock_names_it(pair: Pair, compressed: Path, tmp_path: Path) -> None:
    api.run(recipe(pair[0], f"gzip:{compressed}"), tmp_path / "out")
    lock = yaml.safe_load((tmp_path / "out" / "recipe.lock.yaml").read_text())
    assert lock["inputs"]["x"]["reference"] == f"gzip:{compressed}"
    assert verify(tmp_path / "out", inputs=True) == []
    other = (pair[1] / "model.safetensors").read_bytes()
    compressed.write_bytes(gzip.compress(other[:-1] + b"\x01"))
    (problem,) = verify(tmp_path / "out", inputs=True)
    assert problem.where == "input x: model.safetensors"
    assert problem.what.startswith("sha256 is")


@pytest.mark.usefixtures("kit")
def test_a_plan_alone_finds_it_again(pair: Pair, compressed: Path, tmp_path: Path) -> None:
    api.run(api.plan(recipe(pair[0], f"gzip:{compressed}")), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_without_the_package_it_is_unknown(pair: Pair, compressed: Path) -> None:
    with pytest.raises(MergekitLiteError):
        api.plan(recipe(pair[0], f"gzip:{compressed}"))
