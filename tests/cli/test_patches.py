"""`compress`, `apply` and `inspect` of patches, as a person calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mergekit_lite.cli.compress import METHODS
from mergekit_lite.compress import registry
from tests.cli.conftest import Call


@pytest.fixture
def patch(tmp_path: Path, base_folder: Path, expert_folders: dict[str, Path], call: Call) -> Path:
    out = tmp_path / "math.safetensors"
    found = call("compress", expert_folders["math"], "--base", base_folder, "-o", out)
    assert found.exit_code == 0, found.stderr
    assert found.stdout.strip() == str(out)
    assert "times smaller" in found.stderr
    return out


def test_the_choices_are_the_codecs() -> None:
    # `rtvq` is no codec of one model: it puts several through `tvq`.
    assert list(METHODS) == sorted({*registry(), "rtvq"})


def test_inspect_tells_sizes_and_errors(patch: Path, call: Call) -> None:
    found = call("inspect", patch)
    assert found.exit_code == 0
    assert "compeft (keep 0.05, alpha 1.0, scale std, form rice)" in found.stdout
    assert found.stdout.splitlines()[0].split() == ["kind", "patch", "of", "`base`"]
    heads = next(line for line in found.stdout.splitlines() if line.startswith("layer"))
    assert heads.split() == ["layer", "tensors", "dense", "stored", "ratio", "norm", "error"]
    told = json.loads(call("inspect", patch, "--json").stdout)
    assert told["file_bytes"] == patch.stat().st_size
    assert set(told["layers"]) == {"outside", "0", "1"}
    assert told["model"]["dense"] == 2 * told["model"]["entries"]
    assert told["ratio"] == pytest.approx(told["model"]["dense"] / told["file_bytes"])
    assert sum(part["stored"] for part in told["layers"].values()) < told["file_bytes"]
    assert 0 < told["model"]["error"] < 1


def test_apply_and_verify(patch: Path, base_folder: Path, tmp_path: Path, call: Call) -> None:
    found = call("apply", patch, "--base", base_folder, "-o", tmp_path / "again")
    assert found.exit_code == 0, found.stderr
    assert found.stdout.strip() == str(tmp_path / "again")
    assert call("verify", tmp_path / "again").exit_code == 0


def test_parameters_of_a_codec(
    tmp_path: Path, base_folder: Path, expert_folders: dict[str, Path], call: Call
) -> None:
    words = ["compress", expert_folders["math"], "--base", base_folder]
    out = tmp_path / "p.safetensors"
    method = ["--method", "bitdelta", "--set", "scales=row", "--set", "embeddings=true"]
    found = call(*words, *method, "-o", out, "--json")
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["parameters"] == {"scales": "row", "embeddings": True}
    for extra, said in (
        (["--method", "bitdelta", "--keep", "0.1"], "has no parameter `keep`"),
        (["--set", "alpha"], "is not NAME=VALUE"),
        (["--set", "alpha=0"], "alpha"),
        (["--method", "zip"], "is not one of"),
        (["--keep", "2"], "keep"),
    ):
        wrong = call(*words, *extra, "-o", tmp_path / "q.safetensors")
        assert wrong.exit_code == 2, extra
        assert said in wrong.stderr
    assert call(*words).exit_code == 2
    assert call(*words, "-o", out).exit_code == 2, "it is there already"


def test_the_wrong_base_has_exit_code_2_and_damage_3(
    patch: Path, base_folder: Path, expert_folders: dict[str, Path], tmp_path: Path, call: Call
) -> None:
    out = tmp_path / "again"
    wrong = call("apply", patch, "--base", expert_folders["code"], "-o", out)
    assert wrong.exit_code == 2
    assert "is not what the patch was made against" in wrong.stderr
    data = bytearray(patch.read_bytes())
    data[-1] ^= 255
    patch.write_bytes(data)
    damaged = call("apply", patch, "--base", base_folder, "-o", out)
    assert damaged.exit_code == 3
    assert "checksum" in damaged.stderr
    assert not out.exists()
