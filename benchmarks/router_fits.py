"""Merge two tunings of a small routed model, by every way of making routers, and score the results.

    python benchmarks/router_fits.py                       # trains the models first, some minutes
    python benchmarks/router_fits.py --steps 100 --tune 50 --json fits.json

The model is the Mixtral of `pruning.py`: 8 experts a layer, 2 for each token, trained on the
validation text of three domains. It is tuned twice, each time on the text of one domain, and the
two are merged by the mean of their changes. Routers are the base's, merged like the rest, or fitted
to both on the texts that each was tuned on (`regmean`, `harc`). Bits per byte are those of the test
text; overlap is the part of the experts' choices that fitted routers share on texts that were left
out of the fit, the mean over layers and models. Needs the extra `zoo`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from pruning import DOMAINS, WINDOW, bits, pieces, train
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import mergekit_lite

TUNED = ("german", "french")


def tune(base: Path, out: Path, domain: str, steps: int, rate: float) -> None:
    """Tune every weight of a model on the validation text of one domain."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    ids = torch.tensor(tokenizer("".join(pieces(domain, "validation")))["input_ids"])
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        starts = torch.randint(len(ids) - WINDOW, (12,), generator=generator)
        batch = torch.stack([ids[start : start + WINDOW] for start in starts.tolist()])
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        optimiser.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimiser.step()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def overlap(out: Path) -> float:
    """Return the part of the choices that fitted routers share, over layers and models."""
    layers = json.loads((out / "moe_manifest.json").read_text())["layers"]
    shares = [float(share) for layer in layers for share in layer["overlap"].values()]
    return sum(shares) / len(shares)


def others(out: Path) -> dict[str, float]:
    """Return the same for routers that were not fitted, which the manifest tells beside."""
    layers = json.loads((out / "moe_manifest.json").read_text())["layers"]
    found: dict[str, list[float]] = {}
    for layer in layers:
        for name, own in layer["overlap_of_others"].items():
            found.setdefault(name, []).extend(own.values() if isinstance(own, dict) else [own])
    return {name: sum(shares) / len(shares) for name, shares in found.items()}


def merged(folder: Path, routers: Any, out: Path) -> None:
    """Merge the tuned models with routers made in one way."""
    recipe: dict[str, Any] = {
        "base": str(folder / "base"),
        "experts": {name: {"model": str(folder / name), "weight": 0.5} for name in TUNED},
        "steps": ["task_arithmetic"],
        "routers": routers,
    }
    if isinstance(routers, dict):
        recipe["routers"] = {**routers, "least_overlap": 0, "length": 256}
        recipe["routers"]["data"] = {name: str(folder / f"{name}.jsonl") for name in TUNED}
    mergekit_lite.run(recipe, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--tune", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(folder / "base", given.steps, 0)
        for domain in TUNED:
            tune(folder / "base", folder / domain, domain, given.tune, given.rate)
            lines = [json.dumps({"text": text}) for text in pieces(domain, "validation")]
            (folder / f"{domain}.jsonl").write_text("\n".join(lines))
        rows: dict[str, Any] = {f"tuned: {d}": bits(folder / d) for d in TUNED}
        rows["base"] = bits(folder / "base")
        ways: dict[str, Any] = {"base": "base", "merge": "merge"}
        ways |= {"regmean": {"method": "regmean"}, "harc": {"method": "harc"}}
        ways |= {"harc, shrink 1": {"method": "harc", "shrink": 1.0}}
        for number, (way, routers) in enumerate(ways.items()):
            out = folder / f"out-{number}"
            merged(folder, routers, out)
            rows[f"merged, routers {way}"] = bits(out)
            if isinstance(routers, dict):
                rows[f"merged, routers {way}"]["overlap"] = overlap(out)
                rows.setdefault("overlap of others", others(out))
    print("| | " + " | ".join(DOMAINS) + " | overlap |\n|---|" + "---|" * (len(DOMAINS) + 1))
    for title, row in rows.items():
        if title != "overlap of others":
            shown = [f"{row[domain]:.3f}" for domain in DOMAINS]
            kept = f"{100 * row['overlap']:.1f} %" if "overlap" in row else ""
            print(f"| {title} | {' | '.join(shown)} | {kept} |")
    print(f"overlap of others: {rows['overlap of others']}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
