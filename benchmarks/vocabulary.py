"""How long the union of two vocabularies takes: planning, and moving the rows.

Two models are made with a vocabulary each, of which a share is common and under other ids; nothing
but their embeddings is worth mentioning. The whole merge is timed, and its planning alone:

    python benchmarks/vocabulary.py --tokens 150000 --hidden 64
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import mergekit_lite
from mergekit_lite.checkpoint import header_text
from mergekit_lite.plan.types import Plan

SPECIAL = ("<unk>", "<s>", "</s>")


def tokenizer(words: list[str]) -> dict[str, Any]:
    """Return a byte-level BPE tokenizer that knows `words`, a merge for each."""
    base = [chr(0x100 + number) for number in range(256)]
    vocab = {token: number for number, token in enumerate((*SPECIAL, *base, *words))}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": token, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": True}
            for number, token in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel"},
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [[word[:-1], word[-1]] for word in words if word[:-1] in vocab],
        },
    }  # fmt: skip


def word(number: int) -> str:
    """Return a word of its own for a number: its base 256 digits as letters."""
    digits: list[str] = []
    while number or not digits:
        number, digit = divmod(number, 256)
        digits.append(chr(0x100 + digit))
    return "".join(digits)


def write(folder: Path, words: list[str], hidden: int, seed: int) -> None:
    """Write a model of an embedding, a head and a norm."""
    folder.mkdir(parents=True)
    data = tokenizer(words)
    rows = len(data["model"]["vocab"])
    tensors = [
        ("model.embed_tokens.weight", "F32", (rows, hidden)),
        ("model.norm.weight", "F32", (hidden,)),
        ("lm_head.weight", "F32", (rows, hidden)),
    ]
    text, starts, nbytes = header_text(tensors, {"format": "pt"})
    values = np.random.default_rng(seed).standard_normal((rows, hidden), np.float32)
    with open(folder / "model.safetensors", "wb") as stream:
        stream.write(len(text.encode()).to_bytes(8, "little") + text.encode())
        for start, (_, _, shape) in sorted(zip(starts, tensors, strict=True)):
            stream.seek(start)
            stream.write(values[: shape[0]].tobytes() if len(shape) > 1 else values[0].tobytes())
        stream.truncate(nbytes)
    config = {"vocab_size": rows, "tie_word_embeddings": False, "hidden_size": hidden}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False))


def vocabularies(tokens: int, common: float, permuted: bool) -> tuple[list[str], list[str]]:
    """Return the words of two vocabularies of which a share is common."""
    count = tokens - 256 - len(SPECIAL)
    shared = int(common * count)
    first = [word(number + 256) for number in range(count)]
    second = first[:shared] + [word(number + 256 + count) for number in range(count - shared)]
    if permuted:
        np.random.default_rng(0).shuffle(second)
    return first, second


def timed(work: Path, vocab: str) -> tuple[float, float, float, Plan]:
    """Return the seconds of planning, those of the whole merge, and what of them the CPU worked."""
    recipe = {
        "base": str(work / "base"),
        "experts": {"other": {"model": str(work / "other"), "weight": 0.5}},
        "steps": ["task_arithmetic"],
        "vocab": vocab,
    }
    began, worked = time.perf_counter(), time.process_time()
    plan = mergekit_lite.plan(recipe)
    planned = time.perf_counter() - began
    mergekit_lite.run(plan, work / "out", overwrite=True)
    whole = time.perf_counter() - began
    return planned, whole, time.process_time() - worked, plan


def main() -> int:
    """Make the models, merge them and print the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--common", type=float, default=0.7, help="share of common tokens")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--rule", default="union")
    parser.add_argument("--permuted", action="store_true", help="shuffle all ids of the second")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        both = vocabularies(options.tokens, options.common, options.permuted)
        for name, words in zip(("base", "other"), both, strict=True):
            write(work / name, words, options.hidden, seed=len(name))
        found = [timed(work, options.rule) for _ in range(options.repeat)]
    rows = found[0][3].jobs[0].shape[0]
    best = {
        "tokens": options.tokens,
        "rows": rows,
        "plan_seconds": round(min(run[0] for run in found), 2),
        "merge_seconds": round(min(run[1] for run in found), 2),
        "cpu_seconds": round(min(run[2] for run in found), 2),
    }
    if options.json:
        print(json.dumps(best))
    else:
        print(
            f"{options.rule} of two vocabularies of {options.tokens:,} tokens: {rows:,} rows,"
            f" planned in {best['plan_seconds']} s, merged in {best['merge_seconds']} s in all"
            f" ({best['cpu_seconds']} s of the CPU)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
