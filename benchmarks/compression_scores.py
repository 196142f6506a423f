"""What each codec keeps of the score of a fully fine-tuned expert of the zoo.

    mergekit-lite zoo build --full
    python benchmarks/compression_scores.py [--experts german,french] [--windows 8] [--json FILE]

Each expert is compressed at each setting and applied again; base, expert and results are scored in
bits for a byte of the expert's own test text, of which fewer are better. `score kept` is the
expert's bits over those of the result, `gain kept` the part that is left of what fine-tuning has
gained over the base. The worst expert counts. Needs the extra `zoo`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_lite import patching
from mergekit_lite.zoo.score import score

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "compeft": {"method": "compeft"},
    "compeft, alpha 4": {"method": "compeft", "alpha": 4.0},
    "compeft, keep 0.2, alpha 2": {"method": "compeft", "keep": 0.2, "alpha": 2.0},
    "bitdelta": {"method": "bitdelta"},
    "bitdelta, rows and embeddings": {"method": "bitdelta", "scales": "row", "embeddings": True},
    "topk_sparse": {"method": "topk_sparse"},
    "svd": {"method": "svd"},
    "lowrank_sparse": {"method": "lowrank_sparse"},
    "delta_come": {"method": "delta_come"},
    "ultradelta": {"method": "ultradelta", "gamma": 1.0},
    "tvq": {"method": "tvq"},
    "intq, 4 bits": {"method": "intq"},
    "intq, 2 bits in groups of 128": {"method": "intq", "bits": 2, "group": 128},
}


def bits_of(reference: str, expert: str, windows: int) -> float:
    """Return the bits for a byte of an expert's text."""
    (found,) = score([reference], domains=[expert], windows=windows)
    return found.bits_per_byte


def measure(setting: Mapping[str, Any], expert: str, windows: int) -> dict[str, float]:
    """Compress and apply one expert, and score what comes out."""
    with tempfile.TemporaryDirectory() as name:
        patch, out = Path(name, "patch.safetensors"), Path(name, "applied")
        given = dict(setting)
        method = given.pop("method")
        model = f"zoo:smol-{expert}-full"
        summary = patching.compress(model, "zoo:smol", patch, method=method, **given)
        patching.apply(str(patch), "zoo:smol", out)
        found = {
            "bytes": float(summary.file_bytes),
            "bits": summary.bits,
            "score": bits_of(str(out), expert, windows),
        }
        shutil.rmtree(out)
    return found


def text(found: Mapping[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| setting | bytes | bits an entry | bits a byte of text | score kept | gain kept |",
        "|---|---|---|---|---|---|",
    ]
    for expert, (base, own) in found["references"].items():
        lines.append(f"| base, on {expert} | | | {base:.4f} | {own / base:.1%} | 0 % |")
        lines.append(f"| expert {expert} | | 16 | {own:.4f} | 100 % | 100 % |")
    for setting, each in found["settings"].items():
        kept, gains = [], []
        for expert, one in each.items():
            base, own = found["references"][expert]
            kept.append(own / one["score"])
            gains.append((base - one["score"]) / (base - own))
        first = next(iter(each.values()))
        scores = ", ".join(f"{one['score']:.4f}" for one in each.values())
        told = f"{first['bytes']:,.0f} | {first['bits']:.3f} | {scores}"
        lines.append(f"| `{setting}` | {told} | {min(kept):.1%} | {min(gains):.0%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experts", default="german,french,dictionary")
    parser.add_argument("--settings", help="names of settings, separated by semicolons")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--json", type=Path, help="file of figures; what it has is not taken again")
    given = parser.parse_args()
    experts = given.experts.split(",")
    chosen = given.settings.split(";") if given.settings else list(SETTINGS)
    found: dict[str, Any] = {"references": {}, "settings": {}}
    if given.json and given.json.is_file():
        found = json.loads(given.json.read_text())
    for expert in experts:
        if expert not in found["references"]:
            models = ("zoo:smol", f"zoo:smol-{expert}-full")
            found["references"][expert] = [bits_of(m, expert, given.windows) for m in models]
    for setting in chosen:
        each = found["settings"].setdefault(setting, {})
        for expert in experts:
            if expert not in each:
                print(setting, expert, file=sys.stderr)
                each[expert] = measure(SETTINGS[setting], expert, given.windows)
                if given.json:
                    given.json.write_text(json.dumps(found, indent=2))
    print(text(found))


if __name__ == "__main__":
    main()
