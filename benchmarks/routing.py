"""Route the zoo's experts, and score that beside the best merges into one model.

    python benchmarks/routing.py                       # the full experts (`zoo build --full` first)
    python benchmarks/routing.py --experts adapters    # the adapters that ship
    python benchmarks/routing.py --cases ridge,hidden --json routing.json

Gates are made from validation text and probed on test text; the scale of a merge is the best of a
few on validation text. The table has the part of test tokens and texts that routers send to the
expert of their domain (mean over layers) and bits per byte on test windows. Needs the extra `zoo`.
A JSON file that is there is taken up: cases in it are not measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mergekit_lite
from mergekit_lite.calibrate.probe import belonging, expert_names, probe
from mergekit_lite.calibrate.run import Settings, prepare
from mergekit_lite.calibrate.texts import read_texts
from mergekit_lite.calibrate.weights import Weights
from mergekit_lite.sources import resolve
from mergekit_lite.zoo.catalog import held_out_text
from mergekit_lite.zoo.score import score, text_windows

DOMAINS = ("german", "french", "dictionary")
PROMPTS = 6


@dataclass(frozen=True)
class Case:
    """One model made of the three experts.

    Attributes:
        steps: how weights are merged that are not routed; of a merge, all of them.
        gate: None for a merge into one dense model.
        scales: of the merged difference, to choose from on validation text.
        per_token: experts that a token passes.
        target: the family of a routed model.
    """

    steps: Sequence[Any] = ()
    gate: Mapping[str, Any] | None = None
    scales: tuple[float, ...] = ()
    per_token: int = 2
    target: str = "mixtral"

    def recipe(self, kind: str, scale: float | None) -> dict[str, Any]:
        """Return the recipe; `kind` is `full` or `adapters`."""
        steps = [*self.steps, *([{"scale": {"lambda": scale}}] if scale is not None else [])]
        experts = {
            name: {"lora": f"zoo:smol-{name}"}
            if kind == "adapters"
            else {"model": f"zoo:smol-{name}-full"}
            for name in DOMAINS
        }
        recipe: dict[str, Any] = {"schema_version": 1, "base": "zoo:smol", "experts": experts}
        recipe |= {"steps": steps} if steps else {}
        if self.gate is not None:
            routed = [self.expert(name) for name in DOMAINS]
            recipe["moe"] = {
                "target": self.target,
                "experts": routed,
                "experts_per_token": self.per_token,
                "gate": self.gate,
            }
        return recipe

    def expert(self, name: str) -> dict[str, Any]:
        method = (self.gate or {}).get("method")
        if method in ("random", "zeros"):
            return {"expert": name}
        if method in ("hidden", "cheap_embed"):
            return {"expert": name, "prompts": text_windows(name, "validation", PROMPTS)}
        return {"expert": name, "data": str(held_out_text(name, "validation"))}


TSV: tuple[Any, ...] = ("tsv_merge",)
ISO: tuple[Any, ...] = ("iso_c",)


def _gate(method: str, **params: Any) -> dict[str, Any]:
    short = ("ridge", "router_input_mean", "arrow", "lda", "phatgoose")
    texts = {"length": 256} if method in short else {}
    return {"method": method, **texts, **params}


CASES: Mapping[str, Case] = {
    "task_arithmetic": Case(("task_arithmetic",), scales=(0.5, 0.7, 1.0)),
    "ties": Case(("ties",), scales=(1.0, 1.5, 2.0)),
    "tsv_merge": Case(TSV, scales=(1.0, 1.4, 2.0)),
    "iso_c": Case(ISO, scales=(1.0, 2.0, 3.5)),
    "gateless": Case(gate={"method": "zeros"}, per_token=3),
    "random": Case(gate=_gate("random")),
    "cheap_embed": Case(gate=_gate("cheap_embed")),
    "hidden": Case(gate=_gate("hidden")),
    "router_input_mean": Case(gate=_gate("router_input_mean")),
    "arrow": Case(gate=_gate("arrow")),
    "lda": Case(gate=_gate("lda"), target="glm4_moe"),
    "phatgoose": Case(gate=_gate("phatgoose")),
    "domain_embed": Case(gate=_gate("domain_embed")),
    "ridge": Case(gate=_gate("ridge")),
    "ridge-through-expert": Case(gate=_gate("ridge", through="expert")),
    "ridge-1-per-token": Case(gate=_gate("ridge"), per_token=1),
    "gateless+tsv": Case(TSV, {"method": "zeros"}, (1.4,), per_token=3),
    "ridge+tsv": Case(TSV, _gate("ridge"), (1.4,)),
    "ridge+iso": Case(ISO, _gate("ridge"), (2.0,)),
    "ridge-spread-2+iso": Case(ISO, _gate("ridge", spread=2.0), (2.0,)),
}


@dataclass
class Bench:
    """Measures cases in a folder for scratch."""

    kind: str
    folder: Path
    windows: int
    tokens: int
    found: dict[str, Any] = field(default_factory=dict)

    def bits(self, reference: str, split: str, windows: int) -> dict[str, float]:
        """Return the bits per byte of a model on every domain."""
        return {s.domain: s.bits_per_byte for s in score([reference], split=split, windows=windows)}

    def made(self, case: Case, scale: float | None) -> Path:
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        mergekit_lite.run(case.recipe(self.kind, scale), out)
        return out

    def measure(self, case: Case) -> dict[str, Any]:
        """Make a model and return what it is worth."""
        scale = self._best(case) if len(case.scales) > 1 else next(iter(case.scales), None)
        out = self.made(case, scale)
        routing = self.routing(out) if case.gate is not None and case.per_token < 3 else {}
        return {"scale": scale, **routing, **self.bits(str(out), "test", self.windows)}

    def routing(self, folder: Path) -> dict[str, float]:
        """Return the part of test tokens and texts that go to the expert of their domain."""
        model = resolve(str(folder), relative_to=Path())
        texts = read_texts([(name, held_out_text(name)) for name in DOMAINS])
        settings = Settings(length=256, max_tokens=self.tokens)
        prepared = prepare(model, texts, [], settings)
        names = expert_names(folder, prepared.skeleton)
        weights = Weights(prepared.skeleton, {"model": model})
        try:
            belongs = belonging(prepared.samples.domains, names, {})
            result = probe(prepared, weights, names, belongs, baselines=False)
        finally:
            weights.close()
        return {
            "tokens_right": result.right_in_all(),
            "texts_right": result.right_in_all(texts=True),
        }

    def _best(self, case: Case) -> float:
        tried = {}
        for scale in case.scales:
            tried[scale] = mean(self.bits(str(self.made(case, scale)), "validation", 2))
        return min(tried, key=lambda scale: tried[scale])


def mean(scores: Mapping[str, float]) -> float:
    return sum(scores[name] for name in DOMAINS) / len(DOMAINS)


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what was measured as Markdown."""
    lines = [
        "| model | scale | tokens right | texts right | german | french | dictionary | mean |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        right = [
            f"{100 * row[key]:.1f} %" if key in row else ""
            for key in ("tokens_right", "texts_right")
        ]
        bits = [f"{row[domain]:.3f}" for domain in DOMAINS]
        scale = "" if row.get("scale") is None else f"{row['scale']:g}"
        lines.append(f"| {' | '.join([name, scale, *right, *bits, f'{mean(row):.3f}'])} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experts", choices=("full", "adapters"), default="full")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--windows", type=int, default=8, help="test windows of each domain")
    parser.add_argument(
        "--tokens", type=int, default=2000, help="test tokens probed of each domain"
    )
    parser.add_argument("--json", type=Path, help="write, and take up, every figure here")
    arguments = parser.parse_args()
    wanted = arguments.cases.split(",")
    if unknown := [name for name in wanted if name not in CASES]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(CASES)}")
    file: Path | None = arguments.json
    end = "-full" if arguments.experts == "full" else ""
    references = ("zoo:smol", *(f"zoo:smol-{name}{end}" for name in DOMAINS))
    found: dict[str, Any] = json.loads(file.read_text()) if file and file.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(arguments.experts, Path(scratch), arguments.windows, arguments.tokens)
        for name in (*references, *(n for n in CASES if n in wanted)):
            if name in found:
                continue
            print(name, file=sys.stderr, flush=True)
            if name in CASES:
                found[name] = bench.measure(CASES[name])
            else:
                found[name] = bench.bits(name, "test", arguments.windows)
            if file:
                file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
