"""Patches: bits an entry, the speed of making and applying them, and merges of three.

    python benchmarks/compression.py [--size 0.3] [--rounds 3] [--json]

All runs are whole processes on one core, interpreter start-up included, after a first run of each
that compiles kernels and remembers checksums. Speeds are of dense bytes: those of one bf16 model.
Other programs on the machine make wall times longer, so processor time stands beside them; the best
of all rounds is told. `decode` is the decoder alone, in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from llama_set import make
from process import Usage, measure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mergekit_lite.engine.inputs import Readers  # noqa: E402
from mergekit_lite.engine.packed import unpacked  # noqa: E402
from mergekit_lite.sources import resolve  # noqa: E402

CALL = (sys.executable, "-m", "mergekit_lite")
EXPERTS = ("a", "b", "c")
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "compeft, keep 0.05": ("--method", "compeft"),
    "compeft, keep 0.05, masks": ("--method", "compeft", "--set", "form=masks"),
    "compeft, keep 0.2": ("--method", "compeft", "--keep", "0.2"),
    "bitdelta": ("--method", "bitdelta"),
    "bitdelta, rows and embeddings": (
        "--method", "bitdelta", "--set", "scales=row", "--set", "embeddings=true",
    ),
    "topk_sparse, keep 0.05": ("--method", "topk_sparse"),
    "intq, 4 bits": ("--method", "intq"),
    "intq, 4 bits, groups of 128": ("--method", "intq", "--set", "group=128"),
    "intq, 2 bits, groups of 128": ("--method", "intq", "--bits", "2", "--set", "group=128"),
}  # fmt: skip
STEPS = {"task_arithmetic": "task_arithmetic", "ties": {"ties": {"density": 0.2}}}


class Bench:
    """Runs commands on one core and remembers the best of each."""

    def __init__(self, folder: Path, models: Path, rounds: int) -> None:
        self.folder, self.models, self.rounds = folder, models, rounds

    def best(self, *words: str, out: Path) -> Usage:
        """Return the best of some runs of a verb, its output removed before each."""
        found = []
        for number in range(self.rounds + 1):
            _remove(out)
            used = measure((*CALL, *words, "-o", str(out)), self.folder / "log")
            if number:
                found.append(used)
        wall, cpu = min(u.wall for u in found), min(u.cpu for u in found)
        return Usage(wall, cpu, max(u.peak for u in found), 0, 0)

    def patch(self, expert: str, setting: str) -> tuple[Path, Usage]:
        """Make one patch."""
        out = self.folder / f"{expert}.safetensors"
        base, model = str(self.models / "base"), str(self.models / expert)
        return out, self.best("compress", model, "--base", base, *SETTINGS[setting], out=out)

    def merge(self, name: str, steps: Any, experts: Mapping[str, Path]) -> Usage:
        """Run a merge of experts with equal weights."""
        recipe = self.folder / f"{name}.yaml"
        told = {
            "base": str(self.models / "base"),
            "experts": {n: {"model": str(p), "weight": 0.3} for n, p in experts.items()},
            "steps": [steps],
        }
        recipe.write_text(json.dumps(told))
        return self.best("run", str(recipe), "--quiet", out=self.folder / "merged")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def decoding_seconds(patch: Path) -> float:
    """Return the processor time that decoding all differences of a patch takes."""
    model = resolve(str(patch), relative_to=Path(), kind="patch")
    readers = Readers({"p": model})
    best, out = float("inf"), np.empty(1 << 18, np.float32)
    for _ in range(3):
        began = time.process_time()
        for factors in model.adapter.factors.values() if model.adapter else ():
            packed = readers.packed("p", factors.packed)
            supply, size = unpacked(packed, "p", readers), int(np.prod(packed.shape))
            for first in range(0, size, out.size):
                count = min(out.size, size - first)
                supply.fill(first, count, out[:count].view(np.uint8))
        best = min(best, time.process_time() - began)
    readers.close()
    return best


def speeds(used: Usage, dense: int) -> dict[str, float]:
    return {"wall": dense / used.wall / 1e6, "cpu": dense / used.cpu / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=float, default=0.3, help="parameters, in billions")
    parser.add_argument("--models", type=Path, help="folder in which the models are kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = given.models or folder / "models"
        entries = make(models, given.size, 1).parameters()
        found = run(Bench(folder, models, given.rounds), entries)
    print(json.dumps(found) if given.json else text(found))


def run(bench: Bench, entries: int) -> dict[str, Any]:
    """Take all figures."""
    dense = 2 * entries
    found: dict[str, Any] = {"entries": entries, "codecs": {}, "merges": {}}
    patches: dict[str, Path] = {}
    for setting in SETTINGS:
        path, used = bench.patch("a", setting)
        apply = ("apply", str(path), "--base", str(bench.models / "base"))
        again = bench.best(*apply, out=bench.folder / "again")
        found["codecs"][setting] = {
            "bits": 8 * path.stat().st_size / entries,
            "ratio": dense / path.stat().st_size,
            "compress": speeds(used, dense),
            "apply": speeds(again, dense),
            "decode": dense / decoding_seconds(path) / 1e6,
            "peak": used.peak,
        }
    for expert in EXPERTS:
        patches[expert], _ = bench.patch(expert, next(iter(SETTINGS)))
    whole = {expert: bench.models / expert for expert in EXPERTS}
    for name, steps in STEPS.items():
        one, other = bench.merge(name, steps, whole), bench.merge(name, steps, patches)
        found["merges"][name] = {
            "dense": one.cpu, "patches": other.cpu,
            "cpu": other.cpu / one.cpu, "wall": other.wall / one.wall,
        }  # fmt: skip
    return found


def text(found: Mapping[str, Any]) -> str:
    """Return the figures as Markdown tables."""
    lines = [
        f"{found['entries']:,} entries; speeds in MB/s of dense bytes, by processor time (wall)",
        "",
        "| codec | bits an entry | times smaller | compress | apply | decode |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in found["codecs"].items():
        pairs = (f"{one[k]['cpu']:.0f} ({one[k]['wall']:.0f})" for k in ("compress", "apply"))
        told = f"{one['bits']:.4f} | {one['ratio']:.1f} | {' | '.join(pairs)} | {one['decode']:.0f}"
        lines.append(f"| {name} | {told} |")
    lines += ["", "| merge of three | dense, s | patches, s | ratio (wall) |", "|---|---|---|---|"]
    for name, one in found["merges"].items():
        times = f"{one['dense']:.2f} | {one['patches']:.2f}"
        lines.append(f"| {name} | {times} | {one['cpu']:.2f} ({one['wall']:.2f}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
