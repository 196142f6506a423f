"""Check that two outputs are the same merge.

    python benchmarks/agreement.py BASE OURS PEER bytes|values|random|apart

Prints one JSON object and exits 1 where they are not. Runs in a process of its own, so that the
measuring process stays small.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLED_TENSORS = 24
SAMPLED_ENTRIES = 1 << 22
# The peer rounds every step to bf16 and picks among tied magnitudes as its sort leaves them: with
# changes of a few units in the last place, one entry in forty then differs by one such unit.
LEAST_EQUAL = 0.95
MOST_SHARE_APART = 0.01
MOST_NORM_APART = 0.01


@dataclass(frozen=True)
class Stored:
    """Where one bf16 tensor lies."""

    file: Path
    start: int
    shape: tuple[int, ...]

    def bits(self) -> NDArray[np.uint16]:
        count = min(math.prod(self.shape), SAMPLED_ENTRIES)
        return np.fromfile(self.file, np.uint16, count, offset=self.start)


def tensors(folder: Path) -> dict[str, Stored]:
    """Return every tensor of a checkpoint folder; all must be bf16."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for name, facts in header.items():
            if facts["dtype"] != "BF16":
                raise SystemExit(f"{file}: {name} is {facts['dtype']}, not BF16")
            start = 8 + length + facts["data_offsets"][0]
            found[name] = Stored(file, start, tuple(facts["shape"]))
    return found


def values(bits: NDArray[np.uint16]) -> NDArray[np.float64]:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def sample(names: list[str]) -> list[str]:
    """Return tensors spread over the model, the first and the last among them."""
    count = min(SAMPLED_TENSORS, len(names))
    return [names[round(at)] for at in np.linspace(0, len(names) - 1, count)]


def compare(base: Path, ours: Path, peer: Path) -> dict[str, float]:
    """Return how far apart two merges are, over a sample of their tensors.

    `equal` is the share of entries with the same bits; `error` the norm of the difference over
    the norm of the peer's change to the base; `norm` and `unchanged` compare the two changes.
    """
    inputs, mine, other = tensors(base), tensors(ours), tensors(peer)
    if mine.keys() != other.keys():
        raise SystemExit(f"different tensors: {sorted(mine.keys() ^ other.keys())[:5]}")
    same = count = 0
    apart = changed = changed_mine = 0.0
    still = still_mine = 0
    for name in sample(sorted(mine)):
        if mine[name].shape != other[name].shape:
            raise SystemExit(f"{name}: shapes {mine[name].shape} and {other[name].shape}")
        x, y = mine[name].bits(), other[name].bits()
        start = values(inputs[name].bits())
        dx, dy = values(x) - start, values(y) - start
        same += int((x == y).sum())
        count += x.size
        apart += float(((dx - dy) ** 2).sum())
        changed += float((dy**2).sum())
        changed_mine += float((dx**2).sum())
        still += int((dy == 0).sum())
        still_mine += int((dx == 0).sum())
    return {
        "equal": same / count,
        "error": math.sqrt(apart / changed) if changed else float(apart > 0),
        "norm": math.sqrt(changed_mine / changed) if changed else 1.0,
        "unchanged": (still_mine - still) / count,
    }


def verdict(kind: str, found: Mapping[str, float]) -> str:
    """Return why the two are not the same merge, or an empty string."""
    if kind == "apart":
        return ""
    if kind == "bytes" and found["equal"] < 1:
        return "the bytes differ"
    if kind == "values" and found["equal"] < LEAST_EQUAL:
        return f"more than {1 - LEAST_EQUAL:.0%} of the entries differ"
    if abs(found["norm"] - 1) > MOST_NORM_APART:
        return f"the norms of the changes differ by more than {MOST_NORM_APART:.0%}"
    if abs(found["unchanged"]) > MOST_SHARE_APART:
        return "the shares of unchanged entries differ"
    return ""


def main() -> int:
    base, ours, peer, kind = sys.argv[1:5]
    found = compare(Path(base), Path(ours), Path(peer))
    reason = verdict(kind, found)
    print(json.dumps({**found, "reason": reason}))
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
