"""Patches that name another beside them: experts rounded against what they share."""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from mergekit_lite import api, patching
from mergekit_lite.checkpoint.patch_shared import DIGEST, FILE
from mergekit_lite.compress.rounding import rounded
from mergekit_lite.errors import DataError, RecipeError, SourceError
from mergekit_lite.report.patches import summarise_patch
from mergekit_lite.sources import resolve
from tests.checkpoints import read_weights
from tests.patches.test_patches import deltas

NAMES = ("math", "code", "chat")


@pytest.fixture
def patches(tmp_path: Path, base_folder: Path, expert_folders: dict[str, Path]) -> Path:
    models = {name: str(expert_folders[name]) for name in NAMES}
    patching.compress_together(models, str(base_folder), tmp_path / "patches")
    return tmp_path / "patches"


def levels(values: torch.Tensor, bits: int) -> torch.Tensor:
    found = rounded(values.numpy().reshape(-1), bits)
    codes = found.codes.astype(np.float32) - np.float32(found.zero)
    return torch.from_numpy(codes * np.float32(found.scale)).reshape(values.shape)


def test_experts_are_the_shared_part_and_their_own(
    patches: Path, base_folder: Path, expert_folders: dict[str, Path]
) -> None:
    base = {name: value.float() for name, value in read_weights(base_folder).items()}
    tuned = {
        name: {k: v.float() for k, v in read_weights(expert_folders[name]).items()}
        for name in NAMES
    }
    shared, found = deltas(patches / "shared.safetensors"), deltas(patches / "math.safetensors")
    for name, value in base.items():
        third = np.float32(1 / 3)
        total = sum(((tuned[n][name] - value) * third for n in NAMES), torch.zeros_like(value))
        mean = (value + total) - value
        assert torch.allclose(shared[name], levels(mean, 3), atol=1e-6), name
        own = tuned["math"][name] - value - shared[name]
        assert torch.equal(found[name], shared[name] + levels(own, 2)), name


def test_sizes_and_errors_are_told(patches: Path, base_folder: Path) -> None:
    entries = sum(prod(v.shape) for v in read_weights(base_folder).values())
    tensors = len(read_weights(base_folder))
    for name, bits in (("shared", 3), ("math", 2)):
        model = resolve(str(patches / f"{name}.safetensors"), relative_to=Path(), kind="patch")
        summary = summarise_patch(model)
        assert summary.file_bytes == (patches / f"{name}.safetensors").stat().st_size
        # Codes, each tensor's last byte, and a scale of four bytes for each.
        assert 0 <= summary.compressed.stored - entries * bits / 8 - 4 * tensors <= tensors
        assert 0 < summary.compressed.error < 1


def test_they_merge_and_apply_like_any_patch(patches: Path, base_folder: Path) -> None:
    recipe = {
        "base": str(base_folder),
        "experts": {name: str(patches / f"{name}.safetensors") for name in NAMES},
        "steps": [{"task_arithmetic": {"weights": dict.fromkeys(NAMES, 0.5)}}],
        "output": {"dtype": "float32"},
    }
    api.run(recipe, patches.parent / "merged")
    base, added = read_weights(base_folder), [deltas(patches / f"{n}.safetensors") for n in NAMES]
    for name, value in read_weights(patches.parent / "merged").items():
        total = sum((np.float32(0.5) * each[name] for each in added), torch.tensor(0.0))
        assert torch.allclose(value, base[name].float() + total, atol=1e-6), name
    patching.apply(str(patches / "code.safetensors"), str(base_folder), patches.parent / "applied")
    result, own = read_weights(patches.parent / "applied"), added[1]
    for name, value in base.items():
        wanted = torch.where(own[name] == 0, value, (value.float() + own[name]).bfloat16())
        assert torch.equal(result[name], wanted), name


def test_the_shared_file_is_named_by_its_checksum(patches: Path, base_folder: Path) -> None:
    shared, one = patches / "shared.safetensors", patches / "math.safetensors"
    model = resolve(str(one), relative_to=Path(), kind="patch")
    assert model.adapter is not None
    assert model.adapter.patch is not None
    assert model.adapter.patch.parameters[FILE] == "shared.safetensors"
    assert len(model.adapter.patch.parameters[DIGEST]) == 64
    data = shared.read_bytes()
    shared.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match="another checksum"):
        patching.apply(str(one), str(base_folder), patches.parent / "out")
    shutil.copy(one, shared)
    with pytest.raises(DataError, match="is not the file that `math"):
        patching.apply(str(one), str(base_folder), patches.parent / "out")
    shared.unlink()
    with pytest.raises(SourceError, match="beside it, which is not there"):
        patching.apply(str(one), str(base_folder), patches.parent / "out")
    assert not (patches.parent / "out").exists()


def test_what_cannot_be_compressed_together(
    patches: Path, base_folder: Path, expert_folders: dict[str, Path], tmp_path: Path
) -> None:
    pair = {name: str(expert_folders[name]) for name in ("math", "code")}
    base = str(base_folder)
    with pytest.raises(RecipeError, match="there already") as error:
        patching.compress_together(pair, base, patches)
    assert len(error.value.problems) == 3
    for models, words in (
        ({"math": pair["math"]}, "shares with none"),
        ({"shared": pair["math"], "code": pair["code"]}, "can be called `shared`"),
        ({"a/b": pair["math"], "code": pair["code"]}, "can be called `a/b`"),
    ):
        with pytest.raises(RecipeError, match=words):
            patching.compress_together(models, base, tmp_path / "new")
    with pytest.raises(RecipeError, match="bits"):
        patching.compress_together(pair, base, tmp_path / "new", bits=5)
    assert not (tmp_path / "new").exists()


def test_the_command_takes_experts_by_name(
    base_folder: Path, expert_folders: dict[str, Path], tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from mergekit_lite.cli.compress import command

    base, out = ["--base", str(base_folder)], ["-o", str(tmp_path / "p")]
    pair = [word for n in NAMES[:2] for word in ("--expert", f"{n}={expert_folders[n]}")]
    result = CliRunner().invoke(command, [*base, "--method", "rtvq", *pair, "--bits", "4", *out])
    assert result.exit_code == 0, result.output
    made = {path.name for path in (tmp_path / "p").iterdir()}
    assert made == {"shared.safetensors", "math.safetensors", "code.safetensors"}
    for words in ([*pair], ["--method", "rtvq"], [str(base_folder), "--method", "rtvq", *pair]):
        result = CliRunner().invoke(command, [*base, *words, *out])
        assert result.exit_code == 2
        assert "--expert NAME=MODEL" in result.output
