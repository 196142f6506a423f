"""Time and memory of assembling eight dense models, beside copying the bytes of the result.

    python benchmarks/assemble.py [FOLDER] [--experts 8] [--layers 8]

Models of 1.27 GB each are made in FOLDER first; it needs twenty times that.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from process import Usage, measure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.checkpoints import tiny_llama

CHUNK = 16 << 20


def make(folder: Path, experts: int, layers: int) -> Path:
    """Write a base and experts that differ from it, and a recipe; return the recipe."""
    base = tiny_llama(
        folder / "base", layers=layers, hidden=2048, intermediate=8192, vocab=32000, tied=False
    )
    for number in range(experts):
        copy = Path(shutil.copytree(base, folder / f"expert{number}"))
        with (copy / "model.safetensors").open("r+b") as weights:
            weights.seek(-1024, os.SEEK_END)
            weights.write(bytes([number + 1]) * 16)
    recipe = {
        "schema_version": 1,
        "base": "base",
        "experts": {f"expert{n}": f"expert{n}" for n in range(experts)},
        "moe": {"target": "mixtral", "gate": "random"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def assemble(recipe: Path, out: Path) -> Usage:
    """Return what a run took, in a process of its own, after all before it is on the disk."""
    os.sync()
    command = ["run", str(recipe), "-o", str(out), "--quiet", "--overwrite"]
    return measure([sys.executable, "-m", "mergekit_lite", *command], recipe.parent / "log")


def copied(out: Path, target: Path) -> float:
    """Return the seconds of copying a result with `cp` until it is on the disk."""
    target.mkdir()
    os.sync()
    began = time.monotonic()
    for file in sorted(out.glob("*.safetensors")):
        subprocess.run(["cp", str(file), str(target)], check=True)
    os.sync()
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=None)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--layers", type=int, default=8)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        recipe, out = make(folder, asked.experts, asked.layers), folder / "routed"
        first, again = assemble(recipe, out), assemble(recipe, out)
        peak = max(first.peak, again.peak) // 1_000_000
        plain = copied(out, folder / "copy")
        size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        print(f"result {size / 1e9:.2f} GB; first run {first.wall:.1f} s, again {again.wall:.1f} s")
        print(f"copying it {plain:.1f} s; peak {peak} MB")
        print(f"first / copying {first.wall / plain:.2f}x, again {again.wall / plain:.2f}x")


if __name__ == "__main__":
    main()
