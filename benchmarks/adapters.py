"""Time a merge of eight adapters against the plain copy of their base.

    python benchmarks/adapters.py                       # a base of 1 GB, eight adapters of rank 16

Every round times the copy (`passthrough`) and the merge (`task_arithmetic` of all adapters) as
whole processes, one after the other, after a first run of each that compiles kernels and takes
the inputs' checksums. `product` is the time of the arithmetic alone: the same products of factors
by numpy's BLAS on all cores, nothing read or written. Prints a table and, with --json, figures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

import numpy as np
from llama_set import Shape, shape_for, to_bf16, write_model

RANK = 16


def linears(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    """Return the weights that adapters are trained on."""
    return [(name, size) for name, size in shape.tensors() if name.endswith("_proj.weight")]


def write_adapter(folder: Path, shape: Shape, rank: int) -> None:
    """Write an adapter of that rank on every linear layer, in bf16, in PEFT's format."""
    folder.mkdir(parents=True)
    header, at, parts = {}, 0, []
    for name, (out, wide) in linears(shape):
        module = name.removesuffix(".weight")
        draw = np.random.default_rng(crc32(f"{folder.name} {name}".encode()))
        for factor, size in (("A", (rank, wide)), ("B", (out, rank))):
            values = draw.standard_normal(size, np.float32) / np.float32(math.sqrt(size[1]))
            bits = to_bf16(values if factor == "A" else 0.02 * values)
            key = f"base_model.model.{module}.lora_{factor}.weight"
            offsets = [at, at + bits.nbytes]
            header[key] = {"dtype": "BF16", "shape": list(size), "data_offsets": offsets}
            at += bits.nbytes
            parts.append(bits)
    text = json.dumps(header).encode()
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for bits in parts:
            file.write(bits.tobytes())
    targets = sorted({name.split(".")[-2] for name, _ in linears(shape)})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def recipes(folder: Path, count: int) -> dict[str, Path]:
    """Write the recipes of the copy and of the merge."""
    experts = {f"a{n}": {"lora": str(folder / f"a{n}"), "weight": 1 / count} for n in range(count)}
    base = {"base": str(folder / "base")}
    texts = {
        "copy": {**base, "steps": [{"passthrough": {"source": "base"}}]},
        "merge": {**base, "experts": experts, "steps": ["task_arithmetic"]},
    }
    found = {}
    for name, recipe in texts.items():
        found[name] = folder / f"{name}.yaml"
        found[name].write_text(json.dumps(recipe))  # JSON is YAML
    return found


def timed(recipe: Path, out: Path) -> float:
    """Return the seconds of one whole run, dirty pages flushed before it."""
    os.sync()
    began = time.perf_counter()
    command = [sys.executable, "-m", "mergekit_lite", "run", str(recipe), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    shutil.rmtree(out)
    return seconds


def products(shape: Shape, ranks: int) -> tuple[float, float]:
    """Return the operations of all products, in 10^9, and the seconds that BLAS takes for them."""
    sizes = [size for _, size in linears(shape)]
    work = 2e-9 * ranks * sum(math.prod(size) for size in sizes)
    factors = {
        size: (np.ones((size[0], ranks), np.float32), np.ones((ranks, size[1]), np.float32))
        for size in sizes
    }

    def multiply(size: tuple[int, ...]) -> None:
        left, right = factors[size]
        np.matmul(left, right)

    # One product a core at a time; BLAS's own threads would only get into each other's way.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        began = time.perf_counter()
        list(pool.map(multiply, sizes))
        return work, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a merge of adapters against a plain copy.")
    parser.add_argument("--size", type=float, default=0.5, help="parameters, in billions")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="adapters-"))
    try:
        shape = shape_for(given.size)
        write_model(folder / "base", shape, 2, "base")
        for number in range(given.adapters):
            write_adapter(folder / f"a{number}", shape, given.rank)
        files = recipes(folder, given.adapters)
        seconds: dict[str, list[float]] = {name: [] for name in files}
        for turn in range(given.rounds + 1):
            for name, file in files.items():
                taken = timed(file, folder / "out")
                if turn:
                    seconds[name].append(taken)
        work, product = products(shape, given.adapters * given.rank)
    finally:
        shutil.rmtree(folder)
    best = {name: min(taken) for name, taken in seconds.items()}
    figures = {
        **{f"{name}_s": round(taken, 2) for name, taken in best.items()},
        "ratio": round(best["merge"] / best["copy"], 2),
        "parameters": shape.parameters(),
        "operations_1e9": round(work),
        "product_s": round(product, 2),
    }
    print(json.dumps(figures, indent=2))
    if given.json:
        given.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
