"""Patches that are made with Gram matrices of the layers' inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mergekit_lite import patching
from mergekit_lite.errors import DataError, RecipeError
from tests.checkpoints import read_weights
from tests.patches.test_patches import deltas


def grams(folder: Path, base: Path, *, skip: str = "none", bad: bool = False) -> Path:
    """Write the Gram matrices of inputs that lie in few directions."""
    found = {}
    generator = torch.Generator().manual_seed(0)
    for name, value in read_weights(base).items():
        if value.ndim == 2 and "layers" in name and skip not in name:
            wide = torch.randn(3, value.shape[1], generator=generator)
            inputs = torch.randn(50, 3, generator=generator) @ wide
            inputs += 0.05 * torch.randn(inputs.shape, generator=generator)
            found[name] = inputs.T @ inputs / 50
    if bad:
        next(iter(found.values()))[0, 0] = float("nan")
    (folder / "gram").mkdir(parents=True)
    save_file(found, folder / "gram" / "model.safetensors")
    return folder


def missed(patch: Path, base: Path, tuned: Path, folder: Path) -> float:
    """Return the mean square of what a patch's layers miss on the inputs."""
    from safetensors.torch import load_file

    seen = load_file(folder / "gram" / "model.safetensors")
    before, after, added = read_weights(base), read_weights(tuned), deltas(patch)
    total = 0.0
    for name, gram in seen.items():
        gap = (after[name].float() - before[name].float() - added[name]).double()
        total += float((gap @ gram.double() * gap).sum())
    return total


@pytest.mark.parametrize(
    ("method", "params", "most"),
    [
        ("delta_come", {"ratio": 2.0}, 0.8),
        ("bitdelta", {}, 0.999),
        ("bitdelta", {"scales": "row"}, 0.999),
    ],
)
def test_outputs_miss_less(
    method: str,
    params: dict[str, Any],
    most: float,
    tmp_path: Path,
    base_folder: Path,
    expert_folders: dict[str, Path],
) -> None:
    folder = grams(tmp_path / "statistics", base_folder)
    pair = str(expert_folders["math"]), str(base_folder)
    errors = []
    for name, calibration in (("plain", None), ("seen", folder)):
        out = tmp_path / f"{name}.safetensors"
        patching.compress(*pair, out, method=method, calibration=calibration, **params)
        errors.append(missed(out, base_folder, expert_folders["math"], folder))
    assert errors[1] < most * errors[0]
    assert (tmp_path / "plain.safetensors").stat().st_size == pytest.approx(
        (tmp_path / "seen.safetensors").stat().st_size, rel=0.02
    )


def test_statistics_that_do_not_fit(
    tmp_path: Path, base_folder: Path, expert_folders: dict[str, Path]
) -> None:
    pair, out = (str(expert_folders["math"]), str(base_folder)), tmp_path / "p.safetensors"
    folder = grams(tmp_path / "partly", base_folder, skip="layers.1.mlp")
    notes: list[str] = []
    patching.compress(
        *pair, out, method="delta_come", calibration=folder, emit=lambda e: notes.append(e.text)
    )
    text = next(note for note in notes if "have no statistic" in note)
    assert text.startswith("3 matrices"), text
    with pytest.raises(RecipeError, match="`compeft` makes no use of a calibration"):
        patching.compress(*pair, out, calibration=folder, overwrite=True)
    other = tmp_path / "other"
    other.mkdir()
    name = "model.layers.0.mlp.up_proj.weight"
    for tensors, words in (
        ({name: torch.eye(7)}, "of another model"),
        ({"elsewhere": torch.eye(7)}, "holds no statistic of any tensor"),
    ):
        save_file(tensors, other / "model.safetensors")
        with pytest.raises(RecipeError, match=words):
            patching.compress(*pair, out, method="delta_come", calibration=other, overwrite=True)
    broken = grams(tmp_path / "broken", base_folder, bad=True)
    before = out.read_bytes()
    with pytest.raises(DataError, match="NaN or infinity"):
        patching.compress(*pair, out, method="delta_come", calibration=broken, overwrite=True)
    assert out.read_bytes() == before
