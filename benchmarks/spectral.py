"""Time the matrix methods beside the singular value decompositions that they need.

    python benchmarks/spectral.py                        4096 x 14336, three experts (long)
    python benchmarks/spectral.py --rows 1024 --columns 3584

TSV-M needs a decomposition of each expert's delta and one of each joined basis; Iso-C one of the
sum. Both are timed as `torch.linalg.svd(full_matrices=False)` in fp32, in the same process and on
the same threads. Seconds are of the processor, so that other programs do not count; wall seconds
stand beside them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import describe
from torch import Tensor

from mergekit_lite.ops import merge_tensors

METHODS = ("tsv_merge", "iso_c")


def task_vectors(rows: int, columns: int, experts: int) -> list[Tensor]:
    """Return deltas with a few strong directions over noise that bf16 weights would leave."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(experts):
        left = torch.randn(rows, 64, generator=generator)
        right = torch.randn(64, columns, generator=generator)
        noise = torch.randn(rows, columns, generator=generator)
        found.append(1e-3 * (left @ right / 8 + noise))
    return found


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return a result and what it cost."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    seconds = {
        "processor": round(time.process_time() - processor, 2),
        "wall": round(time.perf_counter() - wall, 2),
    }
    return result, seconds


def decompositions(tasks: Sequence[Tensor]) -> dict[str, dict[str, float]]:
    """Time one decomposition of each kind that the methods need."""
    kept = min(tasks[0].shape) // len(tasks)

    def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, sizes, right

    (left, _, right), delta = timed(lambda: svd(tasks[0]))
    # Bases of all experts side by side: their kind of matrix, not their entries, sets the time.
    generator = torch.Generator().manual_seed(1)
    count = kept * (len(tasks) - 1)
    more = [torch.randn(side, count, generator=generator) for side in tasks[0].shape]
    sides = [torch.cat([left[:, :kept], torch.linalg.qr(more[0])[0]], 1)]
    sides.append(torch.cat([right[:kept].T, torch.linalg.qr(more[1])[0]], 1))
    del left, right, more
    return {
        "delta": delta,
        "joined left": timed(lambda: svd(sides[0]))[1],
        "joined right": timed(lambda: svd(sides[1]))[1],
    }


def needed(costs: dict[str, dict[str, float]], experts: int, unit: str) -> dict[str, float]:
    """Return the seconds of all decompositions that each method needs."""
    one = costs["delta"][unit]
    joined = costs["joined left"][unit] + costs["joined right"][unit]
    return {"tsv_merge": experts * one + joined, "iso_c": one}


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description="Time the matrix methods beside their SVDs.")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=14336)
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="as a worker of a run has")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tasks = task_vectors(options.rows, options.columns, options.experts)
    ours = {m: timed(lambda m=m: merge_tensors(m, tasks))[1] for m in METHODS}  # type: ignore[misc]
    costs = decompositions(tasks)
    figures = {
        "machine": describe(Path.cwd()),
        "shape": [options.rows, options.columns],
        "experts": options.experts,
        "threads": options.threads,
        "svd": costs,
        "ours": ours,
        "ratio": {
            unit: {
                method: round(ours[method][unit] / seconds, 2)
                for method, seconds in needed(costs, options.experts, unit).items()
            }
            for unit in ("processor", "wall")
        },
    }
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
