"""Stores: bytes of each method, and what the zoo's experts score when they come out of one.

    python benchmarks/stores.py [--windows 8] [--methods emr,t_switch] [--json FILE]

The zoo's three adapters are folded into its base in bf16, and the three models packed into one
store. A task's score is the number of bits it needs for a byte of its own domain's test text, less
is better; the percentage is the expert's bits over the task's, `gain` the part that is left of what
the expert gained over the base. Needs the extra `zoo`. A JSON file that is there is taken up.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mergekit_lite
from mergekit_lite import storing
from mergekit_lite.zoo.score import score

DOMAINS = ("german", "french", "dictionary")
BASE = "zoo:smol"
SETTINGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "emr": ("emr", {}),
    "tall_mask": ("tall_mask", {}),
    "tall_mask, mask_lambda 0.2": ("tall_mask", {"mask_lambda": 0.2}),
    "t_switch": ("t_switch", {}),
    "t_switch, keep 0.1": ("t_switch", {"keep": 0.1}),
    "tsv_compress": ("tsv_compress", {}),
    "tsv_compress, fraction 0.05": ("tsv_compress", {"fraction": 0.05}),
}


def bits(reference: str, domain: str, windows: int) -> float:
    """Return what a model needs for a byte of a domain's test text."""
    return score([reference], domains=[domain], windows=windows)[0].bits_per_byte


def folded(domain: str, folder: Path) -> str:
    """Return the folder of an expert as a model of its own; make it if need be."""
    out = folder / domain
    if not out.is_dir():
        recipe = {
            "base": BASE,
            "experts": {domain: {"lora": f"zoo:smol-{domain}"}},
            "steps": ["task_arithmetic"],
        }
        mergekit_lite.run(recipe, out)
    return str(out)


def measure(setting: str, folder: Path, windows: int) -> dict[str, Any]:
    """Pack the experts, make each a model again, and score it."""
    method, params = SETTINGS[setting]
    experts = {domain: folded(domain, folder) for domain in DOMAINS}
    store = folder / "store.safetensors"
    told = storing.pack(experts, BASE, store, method=method, overwrite=True, **params)
    found: dict[str, Any] = {"bytes": told.file_bytes, "ratio": told.ratio, "bits": told.bits}
    found["errors"] = {name: task.error for name, task in told.tasks.items()}
    found["scores"] = {}
    for domain in DOMAINS:
        storing.materialize(store, domain, folder / "task", base=BASE, overwrite=True)
        found["scores"][domain] = bits(str(folder / "task"), domain, windows)
    return found


def text(found: Mapping[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    experts, base = found["experts"], found["base"]
    lines = [
        f"| setting | bytes | times smaller | bits an entry | {' | '.join(DOMAINS)} |",
        "|---|---|---|---|---|---|---|",
        f"| the experts | | 1 | 16 | {' | '.join(f'{experts[d]:.4f}' for d in DOMAINS)} |",
        f"| the base | | | | {' | '.join(f'{base[d]:.4f}' for d in DOMAINS)} |",
    ]
    for name, one in found["settings"].items():
        cells = []
        for domain in DOMAINS:
            mine, best = one["scores"][domain], experts[domain]
            gain = (base[domain] - mine) / (base[domain] - best)
            cells.append(f"{mine:.4f}: {best / mine:.1%}, gain {gain:.0%}")
        told = f"{one['bytes']:,} | {one['ratio']:.1f} | {one['bits']:.2f}"
        lines.append(f"| {name} | {told} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--methods", default=";".join(SETTINGS), help="settings, apart by `;`")
    parser.add_argument("--models", type=Path, help="folder in which the experts are kept")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {"settings": {}}
    if given.json is not None and given.json.is_file():
        found = json.loads(given.json.read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = given.models or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if "base" not in found:
            found["base"] = {d: bits(BASE, d, given.windows) for d in DOMAINS}
            found["experts"] = {d: bits(folded(d, folder), d, given.windows) for d in DOMAINS}
        for setting in given.methods.split(";"):
            if setting not in found["settings"]:
                print(setting, file=sys.stderr)
                found["settings"][setting] = measure(setting, folder, given.windows)
            if given.json is not None:
                given.json.write_text(json.dumps(found, indent=1))
    print(text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
