"""Rows that only move bytes, through the kernel and past it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergekit_lite.engine.options import Report
from mergekit_lite.plan.types import Job, Read
from mergekit_lite.sources import Model
from mergekit_lite.sources.resolve import resolve
from tests.engine.memory_models import NAMES, memory_models
from tests.engine.plans import finished, output, run
from tests.engine.processes import environment


def stored() -> dict[str, dict[str, torch.Tensor]]:
    """Two models of tensors of many dtypes; NaN and -0.0 are bytes like any other."""
    floats = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45, -1.5])
    models = {}
    for number, name in enumerate(("base", "math")):
        models[name] = {
            "ids": torch.arange(1000) - (500 << 40) + number,
            "mask": torch.arange(77) % (2 + number) == 0,
            "weight": torch.randn(700, 1000).bfloat16(),
            "odd": floats.repeat(13)[number:],
            "empty": torch.zeros(0, 4),
            "number": torch.tensor(3 + number),
        }
    return models


def as_files(folder: Path, tensors: dict[str, dict[str, torch.Tensor]]) -> dict[str, Model]:
    for name, group in tensors.items():
        save_file(group, folder / f"{name}.safetensors")
    return {name: resolve(f"{name}.safetensors", relative_to=folder) for name in tensors}


def copy_all(models: dict[str, Model], folder: Path, source: str, **options: object) -> Report:
    jobs = [
        Job(name, info.dtype, info.shape, 0, 0, "copy", (Read(source, name),))
        for name, info in models[source].header.tensors.items()
    ]
    return run(finished(models, jobs, "BF16", 100_000, 0), models, folder, **options)


@pytest.mark.parametrize("source", ["base", "math"])
@pytest.mark.parametrize("kind", ["files", "memory"])
def test_copies_are_equal_byte_for_byte(tmp_path: Path, kind: str, source: str) -> None:
    """Readers of models in memory have no file descriptor for the kernel to copy from."""
    tensors = stored()
    models = memory_models(tensors) if kind == "memory" else as_files(tmp_path, tensors)
    report = copy_all(models, tmp_path / "out", source)
    got = output(tmp_path / "out")
    assert set(got) == set(tensors[source])
    for name, tensor in tensors[source].items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        left, right = (t.flatten().view(torch.uint8) for t in (got[name], tensor))
        assert torch.equal(left, right), name
    matched = {"base": 0, "math": len(tensors["math"])}[source]
    assert report.inputs["math"].matched == matched
    assert report.inputs["math"].measured == 0
    assert len(report.shards) > 1
    assert all(tensor.dtype in NAMES for tensor in got.values())


def test_copies_beside_each_other_do_not_mix(tmp_path: Path) -> None:
    models = as_files(tmp_path, stored())
    copy_all(models, tmp_path / "one", "math", threads=1)
    copy_all(models, tmp_path / "four", "math", threads=4)
    names = sorted(path.name for path in (tmp_path / "one").glob("*.safetensors"))
    for name in names:
        left, right = tmp_path / "one" / name, tmp_path / "four" / name
        assert left.read_bytes() == right.read_bytes()


def test_a_run_that_only_copies_imports_no_numpy(tmp_path: Path) -> None:
    as_files(tmp_path, {name: {"weight": torch.ones(700, 1000)} for name in ("base", "math")})
    recipe = {
        "base": str(tmp_path / "base.safetensors"),
        "experts": {"math": str(tmp_path / "math.safetensors")},
        "steps": [{"take": {"source": "math"}}],
    }
    code = (
        "import sys\n"
        "from mergekit_lite import api\n"
        f"api.run({recipe!r}, {str(tmp_path / 'out')!r}, overwrite=True)\n"
        "print([m for m in ('numpy', 'llvmlite', 'torch') if m in sys.modules])\n"
    )
    ends = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment(tmp_path),
        )
        for _ in range(2)
    ]
    assert ends[1].stdout == "[]\n"  # the first one takes the checksums of the inputs
