"""What it costs to read quantised weights: nanoseconds of a core for each entry, by format.

    python benchmarks/quantised.py [--json]

Beside it stands what reading bf16 costs. All files lie in the page cache; the time is that of the
processor, so that other programs on the machine disturb little.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mergekit_lite.checkpoint import TensorInfo  # noqa: E402
from mergekit_lite.engine.dequantised import decoder  # noqa: E402
from mergekit_lite.sources import resolve  # noqa: E402
from tests import quantised as formats  # noqa: E402

WEIGHT = "model.layers.0.mlp.up_proj.weight"
SIDE = 4096
TILE = 1 << 18
TIMES = 5


def write_all(folder: Path) -> None:
    """Write one weight of 4096 x 4096 in every format."""
    weight = torch.randn(SIDE, SIDE) * 0.02
    formats.save(folder / "bf16", {WEIGHT: weight.bfloat16()})
    stored, _ = formats.fp8_blocks(WEIGHT, weight)
    formats.save(folder / "fp8, 128x128 blocks", stored, {"quant_method": "fp8"})
    stored, _ = formats.fp8_whole(WEIGHT, weight)
    formats.save(folder / "fp8, one scale", stored, {"quant_method": "fp8"})
    for zero in (False, True):
        stored, _ = formats.pack_quantised(WEIGHT, (SIDE, SIDE), 4, 128, zero=zero, order=False)
        name = "int4, groups of 128" + (", zero points" if zero else "")
        formats.save(folder / name, stored, formats.group_config(4, 128, symmetric=not zero))
    stored, _ = formats.mxfp4_experts(WEIGHT, 1, SIDE, SIDE // 32)
    formats.save(folder / "mxfp4, as gpt-oss stores it", stored, {"quant_method": "mxfp4"})


def seconds(read: Callable[[int, int], None], size: int) -> float:
    """Return the least processor time that reading all tiles has taken."""
    best = float("inf")
    for _ in range(TIMES):
        began = time.process_time()
        for first in range(0, size, TILE):
            read(first, min(TILE, size - first))
        best = min(best, time.process_time() - began)
    return best


def cost(folder: Path) -> float:
    """Return the nanoseconds that an entry of a model's weight takes."""
    model = resolve(str(folder), relative_to=folder)
    info = model.header.tensors[WEIGHT]
    reader = model.open(info.file)

    def fetch(part: TensorInfo, start: int, out: np.ndarray) -> None:
        reader.read_into(out, part.start + start)

    out = np.empty(TILE, np.float32)
    raw = out.view(np.uint8)
    codes = decoder(info, fetch) if info.coded is not None else None

    def read(first: int, count: int) -> None:
        if codes is not None:
            codes.fill(first, out[:count])
        else:
            fetch(info, 2 * first, raw[: 2 * count])

    found = seconds(read, info.size) / info.size * 1e9
    reader.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_all(folder)
        found = {path.name: round(cost(path), 2) for path in sorted(folder.iterdir())}
    if as_json:
        print(json.dumps(found))
        return
    for form, nanoseconds in found.items():
        print(f"{form:30}{nanoseconds:6.2f} ns/entry")


if __name__ == "__main__":
    main()
