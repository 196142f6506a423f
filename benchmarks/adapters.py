"""Time merges of eight adapters against the plain copy of their base, of 1 GB.

    python benchmarks/adapters.py                       # rank 16 on all, and rank 8 on q and v
    python benchmarks/adapters.py --kinds 8:q_proj,v_proj

Every round times the copy (`passthrough`) and, for each kind of adapters, the merge
(`task_arithmetic` of all eight) as whole processes, one after the other, after a first run of each
that compiles kernels and takes the inputs' checksums. Kinds are `RANK` (on all linear layers) or
`RANK:MODULES`; `8:q_proj,v_proj` is what PEFT makes of a Llama unless told otherwise. `product` is
the time of the arithmetic alone: the same products of factors, tile by tile, by numpy's BLAS on all
cores, nothing read or written. Prints a table and, with --json, figures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from llama_set import Shape, shape_for, to_bf16, write_model
from process import measure

TILE = 1 << 18
"""Entries of a tile, as the engine has them: a whole product would be mostly fresh memory."""
KINDS = ("16", "8:q_proj,v_proj")


@dataclass(frozen=True)
class Kind:
    """What adapters are like: of which rank, on the modules of which names (all linear ones)."""

    rank: int
    modules: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Kind:
        rank, _, modules = text.partition(":")
        return cls(int(rank), tuple(modules.split(",")) if modules else ())

    def weights(self, shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
        """Return the weights that they are trained on."""
        ends = tuple(f".{name}.weight" for name in self.modules) or ("_proj.weight",)
        return [(name, size) for name, size in shape.tensors() if name.endswith(ends)]


def write_adapter(folder: Path, shape: Shape, kind: Kind) -> None:
    """Write an adapter of one kind, in bf16, in PEFT's format."""
    folder.mkdir(parents=True)
    rank = kind.rank
    header, at, parts = {}, 0, []
    for name, (out, wide) in kind.weights(shape):
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
    targets = sorted({name.split(".")[-2] for name, _ in kind.weights(shape)})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def recipes(folder: Path, shape: Shape, kinds: dict[str, Kind], count: int) -> dict[str, Path]:
    """Write the adapters, and the recipes of the copy and of each merge."""
    base = {"base": str(folder / "base")}
    texts: dict[str, object] = {"copy": {**base, "steps": [{"passthrough": {"source": "base"}}]}}
    for index, (label, kind) in enumerate(kinds.items()):
        places = [folder / f"kind{index}" / f"a{number}" for number in range(count)]
        for place in places:
            write_adapter(place, shape, kind)
        experts = {place.name: {"lora": str(place), "weight": 1 / count} for place in places}
        texts[label] = {**base, "experts": experts, "steps": ["task_arithmetic"]}
    found = {}
    for index, (name, recipe) in enumerate(texts.items()):
        found[name] = folder / f"{index}.yaml"
        found[name].write_text(json.dumps(recipe))  # JSON is YAML
    return found


def timed(recipe: Path, out: Path) -> float:
    """Return the seconds of one whole run, dirty pages flushed before it."""
    os.sync()
    command = [sys.executable, "-m", "mergekit_lite", "run", str(recipe), "-o", str(out)]
    seconds = measure(command, out.with_suffix(".log")).wall
    shutil.rmtree(out)
    return seconds


def products(shape: Shape, kind: Kind, count: int) -> tuple[float, float]:
    """Return the operations of all products, in 10^9, and the seconds that BLAS takes for them."""
    sizes, ranks = [size for _, size in kind.weights(shape)], kind.rank * count
    work = 2e-9 * ranks * sum(math.prod(size) for size in sizes)
    factors = {
        size: (np.ones((size[0], ranks), np.float32), np.ones((ranks, size[1]), np.float32))
        for size in sizes
    }

    def multiply(size: tuple[int, ...]) -> None:
        left, right = factors[size]
        rows = max(TILE // size[1], 1)
        out = np.empty((rows, size[1]), np.float32)
        for row in range(0, size[0], rows):
            part = left[row : row + rows]
            np.matmul(part, right, out=out[: len(part)])

    # One product a core at a time; BLAS's own threads would only get into each other's way.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        began = time.perf_counter()
        list(pool.map(multiply, sizes))
        return work, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="Time merges of adapters against a plain copy.")
    parser.add_argument("--size", type=float, default=0.5, help="parameters, in billions")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", default=KINDS, metavar="RANK[:MODULES]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    kinds = {text: Kind.read(text) for text in given.kinds}
    folder = Path(tempfile.mkdtemp(prefix="adapters-"))
    try:
        shape = shape_for(given.size)
        write_model(folder / "base", shape, 2, "base")
        files = recipes(folder, shape, kinds, given.adapters)
        seconds: dict[str, list[float]] = {name: [] for name in files}
        for turn in range(given.rounds + 1):
            for name, file in files.items():
                taken = timed(file, folder / "out")
                if turn:
                    seconds[name].append(taken)
        work = {text: products(shape, kind, given.adapters) for text, kind in kinds.items()}
    finally:
        shutil.rmtree(folder)
    best = {name: min(taken) for name, taken in seconds.items()}
    figures = {
        "parameters": shape.parameters(),
        "copy_s": round(best["copy"], 2),
        "adapters": {
            text: {
                "merge_s": round(best[text], 2),
                "ratio": round(best[text] / best["copy"], 2),
                "operations_1e9": round(work[text][0], 1),
                "product_s": round(work[text][1], 2),
            }
            for text in kinds
        },
    }
    print(json.dumps(figures, indent=2))
    if given.json:
        given.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
