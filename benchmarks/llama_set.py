"""Make a Llama-shaped base and its experts on disk, tensor by tensor and reproducibly.

    python benchmarks/llama_set.py FOLDER --size 0.55

Experts differ from the base as fine-tuned models do: by about two per cent of its norm, partly of
low rank, with heavier tails than a normal distribution, and stored in bf16, so that many small
differences vanish and many magnitudes tie. It depends on numpy only and holds one block of rows
in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 22
RELATIVE_CHANGE = 0.02
RANK = 8
NAMES = ("base", "a", "b", "c")


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model; `layers` and `hidden` follow from the wanted parameter count."""

    hidden: int
    layers: int
    vocabulary: int
    heads: int
    key_heads: int

    @property
    def inner(self) -> int:
        return -(-self.hidden * 8 // 3 // 128) * 128

    @property
    def key_width(self) -> int:
        return self.hidden // self.heads * self.key_heads

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return every tensor's name and shape, as transformers stores them."""
        hidden, inner, narrow = self.hidden, self.inner, self.key_width
        found: list[tuple[str, tuple[int, ...]]] = [
            ("model.embed_tokens.weight", (self.vocabulary, hidden))
        ]
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            found += [
                (prefix + "input_layernorm.weight", (hidden,)),
                (prefix + "self_attn.q_proj.weight", (hidden, hidden)),
                (prefix + "self_attn.k_proj.weight", (narrow, hidden)),
                (prefix + "self_attn.v_proj.weight", (narrow, hidden)),
                (prefix + "self_attn.o_proj.weight", (hidden, hidden)),
                (prefix + "post_attention_layernorm.weight", (hidden,)),
                (prefix + "mlp.gate_proj.weight", (inner, hidden)),
                (prefix + "mlp.up_proj.weight", (inner, hidden)),
                (prefix + "mlp.down_proj.weight", (hidden, inner)),
            ]
        return [
            *found,
            ("model.norm.weight", (hidden,)),
            ("lm_head.weight", (self.vocabulary, hidden)),
        ]

    def parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors())

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        }


def shape_for(billions: float) -> Shape:
    """Return the Llama shape nearest to a parameter count: width about 85 times the depth."""
    vocabulary = 32_000 if billions >= 0.3 else 8_000
    best: tuple[float, Shape] | None = None
    for hidden in range(256, 8193, 128):
        heads = hidden // 128
        keys = max(k for k in range(1, max(1, heads // 3) + 1) if heads % k == 0)
        one = Shape(hidden, 1, vocabulary, heads, keys)
        layer = one.parameters() - 2 * vocabulary * hidden - hidden
        depth = max(1, round((billions * 1e9 - 2 * vocabulary * hidden) / layer))
        shape = Shape(hidden, depth, vocabulary, heads, keys)
        off = abs(math.log(shape.parameters() / (billions * 1e9)))
        score = 10 * off + abs(math.log(hidden / depth / 85))
        if best is None or score < best[0]:
            best = (score, shape)
    if best is None:
        raise ValueError("no width to choose from")
    return best[1]


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return bf16 bits, rounded to nearest even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def blocks(name: str, shape: tuple[int, ...], expert: str) -> Iterator[NDArray[np.uint16]]:
    """Yield one tensor of one model as blocks of bf16 bits, whole rows at a time."""
    rows = shape[0]
    width = math.prod(shape[1:])
    base = np.random.default_rng([crc32(name.encode()), 0])
    change = np.random.default_rng([crc32(name.encode()), crc32(expert.encode())])
    right = change.standard_normal((RANK, width), dtype=np.float32)
    step = max(1, BLOCK // width)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        values = base.standard_normal((count, width), dtype=np.float32)
        values *= np.float32(0.02)
        if len(shape) == 1:
            values += np.float32(1.0)
        if expert != "base":
            noise = change.standard_normal((count, width), dtype=np.float32)
            # x * |x| has the heavy tails of real task vectors; its variance is 3.
            noise *= np.abs(noise) * np.float32(0.8 / math.sqrt(3))
            left = change.standard_normal((count, RANK), dtype=np.float32)
            noise += (left * np.float32(0.6 / math.sqrt(RANK))) @ right
            values += noise * np.float32(0.02 * RELATIVE_CHANGE)
        yield to_bf16(values)


def write_shard(path: Path, tensors: Sequence[tuple[str, tuple[int, ...]]], expert: str) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors:
        nbytes = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
        for name, shape in tensors:
            for block in blocks(name, shape, expert):
                file.write(block.data)


def write_model(folder: Path, shape: Shape, shards: int, expert: str) -> None:
    """Write one model: `shards` files of about equal size, an index and a config."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    total, done = 2 * shape.parameters(), 0
    parts: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(shards)]
    for name, size in shape.tensors():
        parts[min(shards - 1, done * shards // total)].append((name, size))
        done += 2 * math.prod(size)
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        file = file if shards > 1 else "model.safetensors"
        write_shard(unfinished / file, part, expert)
        weight_map.update({name: file for name, _ in part})
    if shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (unfinished / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (unfinished / "config.json").write_text(json.dumps(shape.config(), indent=2))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def make(folder: Path, billions: float, shards: int = 2) -> Shape:
    """Make the set under `folder` unless an identical one is there."""
    shape = shape_for(billions)
    wanted = json.dumps({"version": 1, "shards": shards, **asdict(shape)})
    for name in NAMES:
        mark = folder / f"{name}.made"
        if mark.exists() and mark.read_text() == wanted and (folder / name).is_dir():
            continue
        mark.unlink(missing_ok=True)
        write_model(folder / name, shape, shards, name)
        mark.write_text(wanted)
    return shape


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a Llama-shaped base and its experts.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=float, default=0.55, help="parameters, in billions")
    parser.add_argument("--shards", type=int, default=2, help="files of each model")
    arguments = parser.parse_args()
    shape = make(arguments.folder, arguments.size, arguments.shards)
    print(json.dumps({"parameters": shape.parameters(), **asdict(shape)}))


if __name__ == "__main__":
    main()
