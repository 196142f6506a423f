"""Score every data-free method on the zoo, side by side.

    python benchmarks/scores.py                          # all methods, about half an hour
    python benchmarks/scores.py --methods ties,iso_c --json scores.json

Each method merges the zoo's three adapters (or as many as it takes) with its default parameters.
Where the merged difference to the base can be scaled, the scale is the best of a few on
validation text; the table is of test text, which nothing was chosen on. Needs the extra `zoo`. A
JSON file that is there is taken up: methods in it are not measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mergekit_lite
from mergekit_lite.zoo.score import score

DOMAINS = ("german", "french", "dictionary")
SCALES = (0.5, 1.0, 2.0)
REFERENCES = ("zoo:smol", *(f"zoo:smol-{name}" for name in DOMAINS))


@dataclass(frozen=True)
class Method:
    """One merge of the zoo.

    Attributes:
        steps: the chain.
        experts: which adapters.
        is_scaled: a `scale` after the chain is chosen on validation text.
    """

    steps: Sequence[Any]
    experts: tuple[str, ...] = DOMAINS
    is_scaled: bool = True

    def recipe(self, scale: float) -> dict[str, Any]:
        chain = [*self.steps, *([{"scale": {"lambda": scale}}] if self.is_scaled else [])]
        return {
            "schema_version": 1,
            "base": "zoo:smol",
            "experts": {name: {"lora": f"zoo:smol-{name}"} for name in self.experts},
            "steps": chain,
        }


TWO = ("german", "french")
METHODS: Mapping[str, Method] = {
    "linear": Method(["linear"], is_scaled=False),
    "task_arithmetic": Method(["task_arithmetic"]),
    "task_arithmetic+lines": Method(["task_arithmetic", "lines"]),
    "magmax": Method(["magmax"]),
    "ties": Method(["ties"]),
    "ties-model": Method([{"ties": {"scope": "model"}}]),
    "ties-std": Method([{"ties": {"trim": "std"}}]),
    "ties-norm": Method([{"ties": {"trim": "norm"}}]),
    "dare_linear": Method(["dare_linear"]),
    "dare_ties": Method(["dare_ties"]),
    "breadcrumbs": Method(["breadcrumbs", "task_arithmetic"]),
    "breadcrumbs_ties": Method(["breadcrumbs_ties"]),
    "della": Method(["della"]),
    "della_linear": Method(["della_linear"]),
    "sce": Method(["sce"]),
    "ram": Method(["ram"]),
    "ramplus": Method(["ramplus"]),
    "consensus": Method(["consensus"]),
    "consensus_ties": Method(["consensus_ties"]),
    "tatr": Method(["tatr"]),
    "pcb": Method(["pcb"]),
    "localize_and_stitch": Method(["localize_and_stitch"]),
    "model_stock": Method(["model_stock"], is_scaled=False),
    "multislerp": Method(["multislerp"], is_scaled=False),
    "karcher": Method(["karcher"], is_scaled=False),
    "tsv_merge": Method(["tsv_merge"]),
    "iso_c": Method(["iso_c"]),
    "iso_cts": Method(["iso_cts"]),
    "cart": Method(["cart"]),
    "task_arithmetic+svc": Method(["task_arithmetic", "svc"]),
    "sign_consensus+svc": Method(["sign_consensus", "svc"]),
    # Its default is 300 steps of Adam for each matrix.
    "wudi-closed-form": Method([{"wudi": {"closed_form": True}}]),
    "ace": Method(["ace"]),
    "slerp": Method([{"slerp": {"t": 0.5}}], TWO, is_scaled=False),
    "nuslerp": Method(["nuslerp"], TWO, is_scaled=False),
    "nearswap": Method([{"nearswap": {"t": 0.001}}], ("german",), is_scaled=False),
    "arcee_fusion": Method(["arcee_fusion"], ("german",), is_scaled=False),
    "mediator_split": Method([{"mediator_split": {"keep": "german"}}], TWO, is_scaled=False),
    "layer_swap": Method(
        [{"layer_swap": {"from": "german", "into": "dictionary", "bottom": 8, "top": 4}}],
        ("german", "dictionary"),
        is_scaled=False,
    ),
    "bspline_blend": Method(
        [{"bspline_blend": {"source": "german", "control_points": [0, 0.2, 1, 1, 0.6, 0.2]}}],
        ("german",),
        is_scaled=False,
    ),
    "half_reset": Method([{"half_reset": {"source": "german"}}], ("german",), is_scaled=False),
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def bits(reference: str, split: str, windows: int) -> dict[str, float]:
    """Return the bits per byte of a model on every domain."""
    return {s.domain: s.bits_per_byte for s in score([reference], split=split, windows=windows)}


def mean(scores: Mapping[str, float]) -> float:
    return sum(scores[name] for name in DOMAINS) / len(DOMAINS)


def merged(method: Method, scale: float, folder: Path) -> tuple[Path, float]:
    """Merge and return the folder and the seconds it took."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    mergekit_lite.run(method.recipe(scale), out)
    return out, time.monotonic() - began


def measure(method: Method, folder: Path, windows: int) -> dict[str, Any]:
    """Choose the scale on validation text and return the scores on test text."""
    if not method.is_scaled:
        out, seconds = merged(method, 1.0, folder)
        return {"scale": None, "seconds": seconds, **bits(str(out), "test", windows)}
    tried = {}
    for scale in SCALES:
        out, seconds = merged(method, scale, folder)
        tried[scale] = mean(bits(str(out), "validation", 1))
    best = min(tried, key=lambda scale: tried[scale])
    if best != SCALES[-1]:
        out, seconds = merged(method, best, folder)
    return {"scale": best, "seconds": seconds, **bits(str(out), "test", windows)}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scores as Markdown, the best of each column in bold."""
    best = {name: min(row[name] for row in found.values()) for name in DOMAINS}
    lines = [
        "| method | scale | german | french | dictionary | mean |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        cells = [f"**{row[d]:.3f}**" if row[d] == best[d] else f"{row[d]:.3f}" for d in DOMAINS]
        scale = "" if row.get("scale") is None else f"{row['scale']:g}"
        lines.append(f"| {name} | {scale} | {' | '.join(cells)} | {mean(row):.3f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--windows", type=int, default=4, help="test windows of each domain")
    parser.add_argument("--json", type=Path, help="write, and take up, every figure here")
    arguments = parser.parse_args()
    known = arguments.methods.split(",")
    if unknown := [name for name in known if name not in METHODS]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(METHODS)}")
    file: Path | None = arguments.json
    found: dict[str, Any] = json.loads(file.read_text()) if file and file.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in (*REFERENCES, *(n for n in METHODS if n in known)):
            if name in found:
                continue
            say(name)
            if name in METHODS:
                found[name] = measure(METHODS[name], Path(scratch), arguments.windows)
            else:
                found[name] = bits(name, "test", arguments.windows)
            if file:
                file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
