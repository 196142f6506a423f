"""Bytes of patches on the shapes of published models, beside the ratios that papers print.

    python benchmarks/patch_sizes.py

No weights are needed: sizes follow from names and shapes. All tensors are taken to differ.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mergekit_lite.compress import codec_named  # noqa: E402
from mergekit_lite.compress.sizes import bytes_of  # noqa: E402

Shapes = Mapping[str, tuple[int, ...]]

SETTINGS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("compeft", {"keep": 0.05}, "47.2"),
    ("compeft", {"keep": 0.1}, "27.8"),
    ("compeft", {"keep": 0.2}, "17.0"),
    ("compeft", {"keep": 0.3}, "13.5"),
    ("compeft", {"keep": 0.5}, "10.7"),
    ("compeft", {"form": "masks"}, "8"),
    ("bitdelta", {}, "16; file 10.1 and 5.4"),
    ("delta_come", {}, "16 without scales"),
    ("tvq", {"bits": 4}, "4"),
    ("tvq", {"bits": 3}, "5.3"),
    ("tvq", {"bits": 2}, "8"),
    ("ultradelta", {"keep": 0.05}, "32.9"),
    ("ultradelta", {"keep": 0.03}, "50.9"),
)
"""Codec, its parameters, and how many times smaller papers say that it is."""


def llama(vocabulary: int, hidden: int, inner: int, layers: int, keys: int) -> Shapes:
    """Return the tensors of a Llama model.

    Args:
        vocabulary, hidden, inner, layers: sizes of the model.
        keys: width of the keys of all heads together.
    """
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name, rows in (("q", hidden), ("k", keys), ("v", keys), ("o", hidden)):
            found[f"{at}.self_attn.{name}_proj.weight"] = (rows, hidden)
        found[f"{at}.mlp.gate_proj.weight"] = (inner, hidden)
        found[f"{at}.mlp.up_proj.weight"] = (inner, hidden)
        found[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
        found[f"{at}.input_layernorm.weight"] = (hidden,)
        found[f"{at}.post_attention_layernorm.weight"] = (hidden,)
    return found


MODELS: Mapping[str, Shapes] = {
    "Llama-2-7B": llama(32000, 4096, 11008, 32, 4096),
    "Llama-3-8B": llama(128256, 4096, 14336, 32, 1024),
}


def sizes(shapes: Shapes, codec: str, given: Mapping[str, Any]) -> dict[str, float]:
    """Return bytes in bf16, of the compressed tensors and all, and of a patch's parts of both."""
    from math import prod

    params = codec_named(codec).resolved(given)
    found = {"dense": 0.0, "stored": 0.0, "inside_dense": 0.0, "inside": 0.0}
    for name, shape in shapes.items():
        dense, stored = 2 * prod(shape), bytes_of(codec, params, name, shape)
        found["dense"] += dense
        found["stored"] += dense if stored is None else stored
        if stored is not None:
            found["inside_dense"] += dense
            found["inside"] += stored
    return found


def main() -> None:
    heads = [f"{model}: {what}" for model in MODELS for what in ("bytes", "times", "compressed")]
    print(f"| setting | published | {' | '.join(heads)} |")
    print("|---|---|" + "---|" * len(heads))
    for codec, given, published in SETTINGS:
        cells = []
        for shapes in MODELS.values():
            found = sizes(shapes, codec, given)
            cells.append(f"{found['stored'] / 1e9:.3f} GB")
            cells.append(f"{found['dense'] / found['stored']:.1f}")
            cells.append(f"{found['inside_dense'] / found['inside']:.1f}")
        setting = ", ".join([f"`{codec}`", *(f"`{n}` {v}" for n, v in given.items())])
        print(f"| {setting} | {published} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
