"""How long planning takes over headers the size of a 405 B model with eight experts.

The checkpoints are real safetensors headers over sparse files, so they take no space:

    python benchmarks/plan_speed.py --layers 126 --experts 8
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mergekit_lite.checkpoint import header_text
from mergekit_lite.checkpoint.index import index_text, shard_names
from mergekit_lite.ops import registry
from mergekit_lite.plan.build import build, models
from mergekit_lite.plan.estimate import estimate, size_text
from mergekit_lite.plan.layout import split
from mergekit_lite.recipe import Recipe, load

HIDDEN, INTERMEDIATE, KEYS, VOCABULARY = 16384, 53248, 1024, 128256
SHARD = 5_000_000_000
Shapes = dict[str, tuple[int, ...]]


def shapes(layers: int) -> Shapes:
    """Return the names and shapes of a Llama as wide as the 405 B one."""
    found: Shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        found |= {
            f"{prefix}input_layernorm.weight": (HIDDEN,),
            f"{prefix}mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
            f"{prefix}mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{prefix}mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{prefix}post_attention_layernorm.weight": (HIDDEN,),
            f"{prefix}self_attn.k_proj.weight": (KEYS, HIDDEN),
            f"{prefix}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}self_attn.v_proj.weight": (KEYS, HIDDEN),
        }
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def write_sparse(folder: Path, layers: int) -> None:
    """Write a checkpoint whose headers are real and whose weights are holes."""
    folder.mkdir(parents=True)
    tensors = [(name, "BF16", shape) for name, shape in shapes(layers).items()]
    sizes = [2 * shape[0] * (shape[1] if len(shape) > 1 else 1) for _, _, shape in tensors]
    groups = split(sizes, SHARD)
    weight_map: dict[str, str] = {}
    for file, group in zip(shard_names(len(groups)), groups, strict=True):
        part = [tensors[i] for i in group]
        text, _, nbytes = header_text(part, {"format": "pt"})
        with open(folder / file, "wb") as stream:
            stream.write(len(text.encode()).to_bytes(8, "little") + text.encode())
            stream.truncate(nbytes)
        weight_map |= dict.fromkeys((name for name, _, _ in part), file)
    index = index_text(weight_map, sum(sizes), sum(sizes) // 2)
    (folder / "model.safetensors.index.json").write_text(index)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def recipe_text(root: Path, experts: int) -> str:
    """Return a recipe that uses presets, gradients over depth and rules."""
    names = [f"expert{number}" for number in range(experts)]
    lines = [f"base: {root / 'base'}", "experts:"]
    lines += [f"  {name}: {{model: {root / name}, weight: [0.2, 0.6]}}" for name in names]
    lines += ["steps:", "  - ties: {density: 0.2}", "rules:"]
    lines += [
        "  - {match: {role: norm}, take: base}",
        "  - {match: {role: attention}, set: {density: 0.5}}",
        "  - {match: {layers: '0-3'}, take: expert0}",
    ]
    return "\n".join(lines) + "\n"


def timed(label: str, work: Callable[[], object]) -> float:
    """Run `work`, print how long it took and return that."""
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    print(f"{label:28}{seconds:7.2f} s")
    return seconds


def main() -> None:
    """Write the checkpoints, plan over them and print the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--layers", type=int, default=126)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where to write the sparse checkpoints")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        root = Path(temporary)
        for name in ("base", *(f"expert{number}" for number in range(options.experts))):
            write_sparse(root / name, options.layers)
        (root / "recipe.yaml").write_text(recipe_text(root, options.experts))
        loaded: list[Recipe] = []
        timed("op registry", registry)
        total = timed("load the recipe", lambda: loaded.append(load(root / "recipe.yaml")))
        found = {}
        total += timed("read the headers", lambda: found.update(models(loaded[0])))
        plans = []
        total += timed("build the plan", lambda: plans.append(build(loaded[0], found)))
        plan = plans[0]
        total += timed("estimate", lambda: estimate(plan))
        print(f"{'together':28}{total:7.2f} s")
        timed("(to JSON)", plan.to_json)
        read = sum(len(job.reads) for job in plan.jobs)
        cost = estimate(plan)
        print(
            f"{len(plan.jobs)} rows, {read} reads, {len(plan.shards)} shards,"
            f" {size_text(cost.read_bytes)} to read, {size_text(cost.write_bytes)} to write"
        )
        print("torch imported" if "torch" in sys.modules else "torch not imported")


if __name__ == "__main__":
    main()
