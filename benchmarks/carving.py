"""Cut the zoo's base into experts, by several methods at the same budget, and score what is left.

    python benchmarks/carving.py                              # 16 slices, 2 shared and 10 chosen
    python benchmarks/carving.py --experts-per-token 6 --json carving.json

Layers are cut by the validation text of one domain and scored on its test text: bits per byte, and
the part of the slices with the largest contributions that routers choose (mean over layers).
Needs the extra `zoo`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

import mergekit_lite
from mergekit_lite.calibrate.carving import Base
from mergekit_lite.calibrate.host import Host
from mergekit_lite.moe.carve._layer import Layer, Split
from mergekit_lite.moe.carve.routers import agreement, contributions
from mergekit_lite.plan.build import prepare
from mergekit_lite.recipe import load
from mergekit_lite.zoo.catalog import held_out_text
from mergekit_lite.zoo.score import score

BASE = "zoo:smol"
CASES: dict[str, dict[str, Any]] = {
    "cmoe, ridge": {"method": "cmoe", "router": "ridge"},
    "coactivation, ridge": {"method": "coactivation", "router": "ridge"},
    "gradient, ridge": {"method": "gradient", "router": "ridge"},
    "kmeans, ridge": {"method": "kmeans", "router": "ridge"},
    "kmeans, param": {"method": "kmeans", "router": "param"},
    "contiguous, factor": {"method": "contiguous", "router": "factor"},
    "contiguous, ridge": {"method": "contiguous", "router": "ridge"},
    "random, random": {"method": "random", "router": "random"},
}


def recipe(case: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe of one case."""
    carve = {
        "experts": given.experts,
        "shared": given.shared,
        "experts_per_token": given.experts_per_token,
        **case,
    }
    if case["method"] in ("cmoe", "coactivation", "gradient") or case["router"] in (
        "ridge",
        "factor",
    ):
        carve["data"] = str(held_out_text(given.domain, "validation"))
    return {"base": BASE, "moe": {"carve": carve}}


def agreement_of(asked: dict[str, Any], out: Path, given: argparse.Namespace) -> float:
    """Return the part of the slices that matter most which routers choose on test text."""
    plan, models = prepare(load(asked))
    orders = json.loads((out / "carve_neurons.json").read_text())
    rows = {layer: name for name, _, kind, layer in plan.moe["rows"] if kind == "router"}
    base, found = Base(plan, models, Host()), []
    try:
        passed = base.passed(held_out_text(given.domain, "test"), tokens=2048, length=512)
        with safe_open(out / "model.safetensors", "pt") as weights:
            for index, seen in passed.layers:
                gate, up, down = (base.matrix(index, part) for part in ("gate", "up", "down"))
                layer = Layer(gate, up, down, seen.inputs, 0)
                slices = np.array(orders[str(index)]).reshape(given.experts, -1)
                own = [one[one < layer.neurons] for one in slices]
                split = Split(np.concatenate([*own[: given.shared], own[0][:0]]),
                              tuple(own[given.shared :]))  # fmt: skip
                router = weights.get_tensor(rows[index]).double().numpy()
                wanted = contributions(layer, split)
                found.append(agreement(layer.seen() @ router.T, wanted, given.experts_per_token))
    finally:
        base.close()
    return sum(found) / len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--shared", type=int, default=2)
    parser.add_argument("--experts-per-token", type=int, default=10)
    parser.add_argument("--domain", default="dictionary")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    def bits(reference: str) -> float:
        found = score([reference], domains=[given.domain], split="test", windows=given.windows)
        return found[0].bits_per_byte

    rows = {"dense": {"bits": bits(BASE), "agreement": 1.0}}
    print("| | bits per byte | slices chosen right |\n|---|---|---|")
    print(f"| dense | {rows['dense']['bits']:.3f} | |", flush=True)
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            asked, out = recipe(case, given), Path(folder) / "carved"
            mergekit_lite.run(asked, out)
            right = agreement_of(asked, out, given)
            rows[name] = {"bits": bits(str(out)), "agreement": right}
        print(f"| {name} | {rows[name]['bits']:.3f} | {100 * right:.0f} % |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
