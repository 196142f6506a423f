"""Halve the experts of a small routed model, by every method, and score what is left.

    python benchmarks/pruning.py                    # trains the model first, some minutes
    python benchmarks/pruning.py --steps 100 --keep 2 --json pruning.json

The model is a Mixtral of a few million weights that is trained here, from nothing, on the
validation text of the zoo's three domains: 8 experts a layer, 2 for each token. Experts are
measured on that text, and bits per byte are those of the test text. `random` is the mean of
several seeds. Experts are left out, and then merged. Needs the extra `zoo`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedTokenizerFast

import mergekit_lite
from mergekit_lite.calibrate.run import Settings, calibrate
from mergekit_lite.calibrate.texts import prompts
from mergekit_lite.sources import resolve
from mergekit_lite.zoo.catalog import held_out_text

DOMAINS = ("german", "french", "dictionary")
METHODS = (
    "random", "frequency", "gate", "ean", "man", "msan", "max_activation", "reap", "easy_ep",
    "naee",
)  # fmt: skip
FIT = {"router": "lse", "refit_down": "ridge"}
MERGES: dict[str, dict[str, Any]] = {
    "merged: ream": {"method": "ream"},
    "merged: m_smoe": {"method": "m_smoe"},
    "merged: hc_smoe": {"method": "hc_smoe"},
    "merged: sub_moe": {"method": "sub_moe"},
    "merged: uncurl": {"method": "uncurl"},
    "merged: hc_smoe, not aligned": {"method": "hc_smoe", "align": "none"},
    "merged: hc_smoe, aligned by both": {"method": "hc_smoe", "align": "both"},
    "merged: hc_smoe, router by frequency": {"method": "hc_smoe", "router": "frequency"},
    "merged: hc_smoe, router lse": {"method": "hc_smoe", "router": "lse"},
    "merged: hc_smoe, down refitted": {"method": "hc_smoe", "refit_down": "ridge"},
    "merged: ream, lse and refitted": {"method": "ream", **FIT},
    "merged: m_smoe, lse and refitted": {"method": "m_smoe", **FIT},
    "merged: hc_smoe, lse and refitted": {"method": "hc_smoe", **FIT},
    "merged: sub_moe, lse and refitted": {"method": "sub_moe", **FIT},
    "merged: uncurl, lse and refitted": {"method": "uncurl", **FIT},
}
"""What a row is called -> what its recipe says beside `keep` and `stats`."""
WINDOW = 128


def pieces(domain: str, split: str) -> list[str]:
    """Return a domain's text in pieces of some ten lines."""
    lines = held_out_text(domain, split).read_text(encoding="utf-8").splitlines(keepends=True)
    return ["".join(lines[at : at + 10]) for at in range(0, len(lines), 10)]


def train(folder: Path, steps: int, seed: int) -> None:
    """Train the model and write it with its tokenizer."""
    texts = [text for domain in DOMAINS for text in pieces(domain, "validation")]
    learnt = ByteLevelBPETokenizer()
    learnt.train_from_iterator(texts, vocab_size=1024, special_tokens=["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learnt._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        MixtralConfig(
            vocab_size=1024, hidden_size=128, intermediate_size=192, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=8,
            num_experts_per_tok=2, max_position_embeddings=512, output_router_logits=True,
            router_aux_loss_coef=0.01, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    ids = {d: torch.tensor(tokenizer("".join(pieces(d, "validation")))["input_ids"])
           for d in DOMAINS}  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = []
        for domain in DOMAINS:
            starts = torch.randint(len(ids[domain]) - WINDOW, (4,), generator=generator)
            rows += [ids[domain][start : start + WINDOW] for start in starts.tolist()]
        batch = torch.stack(rows)
        loss = model(batch, labels=batch).loss
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss:.3f}", file=sys.stderr)
    model.config.output_router_logits = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def bits(folder: Path) -> dict[str, float]:
    """Return the bits per byte of the test text of each domain."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    found = {}
    for domain in DOMAINS:
        nats = nbytes = 0.0
        for text in pieces(domain, "test"):
            ids = torch.tensor([[0, *tokenizer(text)["input_ids"]]])[:, :512]
            with torch.inference_mode():
                logits = model(ids).logits[0, :-1]
            nats += float(cross_entropy(logits, ids[0, 1:], reduction="sum"))
            nbytes += len(tokenizer.decode(ids[0, 1:]).encode())
        found[domain] = nats / math.log(2) / nbytes
    return found


def measure(base: Path, folder: Path, domains: Sequence[str]) -> Path:
    """Measure the experts on the validation text of some domains."""
    texts = [t for d in domains for t in prompts(d, pieces(d, "validation"))]
    calibrate(resolve(str(base), relative_to=folder), texts, folder,
              kinds=("rates", "outputs", "merging"), settings=Settings(length=256))  # fmt: skip
    return folder


def pruned(
    base: Path, stats: Path, method: str, keep: int, seed: int, folder: Path
) -> dict[str, float]:
    """Return the bits per byte of what a method leaves."""
    out = folder / f"{stats.name}-{method}-{seed}"
    said = {"keep": keep, "method": method}
    said |= {} if method == "random" else {"stats": str(stats)}
    mergekit_lite.run({"base": str(base), "seed": seed, "moe": {"prune": said}}, out)
    return bits(out)


def merged(base: Path, stats: Path, said: Mapping[str, Any], keep: int, out: Path) -> Any:
    """Return the bits per byte of what merging leaves."""
    merge = {"keep": keep, "stats": str(stats), **said}
    mergekit_lite.run({"base": str(base), "moe": {"merge": merge}}, out)
    return bits(out)


def line(name: str, row: Mapping[str, float]) -> str:
    mean = sum(row.values()) / len(row)
    return f"| {name} | " + " | ".join(f"{row[d]:.3f}" for d in DOMAINS) + f" | {mean:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--keep", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5, help="of `random`")
    parser.add_argument("--seed", type=int, default=0, help="of the model")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "base"
        train(base, given.steps, given.seed)
        rows: dict[str, Any] = {"whole": bits(base)}
        stats = measure(base, folder / "all", DOMAINS)
        for method in METHODS:
            seeds = range(given.seeds if method == "random" else 1)
            found = [pruned(base, stats, method, given.keep, s, folder) for s in seeds]
            rows[method] = {d: sum(row[d] for row in found) / len(found) for d in DOMAINS}
        own = {d: measure(base, folder / d, [d]) for d in DOMAINS}
        for method in ("reap", "naee"):
            by_domain = {d: pruned(base, own[d], method, given.keep, 0, folder)[d] for d in DOMAINS}
            rows[f"{method}, measured on that domain"] = by_domain
        for number, (title, said) in enumerate(MERGES.items()):
            rows[title] = merged(base, stats, said, given.keep, folder / f"merged-{number}")
    print(f"| experts kept: {given.keep} of 8 | " + " | ".join(DOMAINS) + " | mean |")
    print("|---|" + "---|" * (len(DOMAINS) + 1))
    for name, row in rows.items():
        print(line(name, row))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
