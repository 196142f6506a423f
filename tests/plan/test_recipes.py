"""Every recipe of the repository plans, over models of the right shapes and without weights."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from mergekit_lite.plan.build import build
from mergekit_lite.recipe import load
from mergekit_lite.sources import zoo
from tests.checkpoints import write_json
from tests.plan.hollow import Tensors, llama_config, write
from tests.tokenizer.tokenizers import word_level

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
OF_ROUTED = {
    "moe-flex-olmo", "moe-grow", "moe-merge-experts", "moe-merge-routed", "moe-prune",
}  # fmt: skip
"""Their base is a routed model, which `tests/moe/test_recipes.py` makes."""
OF_PATCHES = {"compressed-experts", "store-of-experts"}
"""Their experts are patches or of a store, which `tests/patches/test_recipe.py` makes."""
LAYERS, HIDDEN, KEYS, INNER, VOCABULARY = 30, 576, 192, 1536, 49152


def smol() -> Tensors:
    """Name -> (dtype, shape) of SmolLM2-135M."""
    found: Tensors = {"model.embed_tokens.weight": ("BF16", (VOCABULARY, HIDDEN))}
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    for layer in range(LAYERS):
        for module, shape in shapes.items():
            found[f"model.layers.{layer}.{module}.weight"] = ("BF16", shape)
    return found | {"model.norm.weight": ("BF16", (HIDDEN,))}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("zoo") / "smol")


def model(folder: Path) -> Path:
    config = llama_config(LAYERS, hidden=HIDDEN, intermediate=INNER, vocab=VOCABULARY, tied=True)
    write(folder, smol(), config)
    write_json(folder / "tokenizer.json", word_level(["<unk>", "<|im_start|>", "<|im_end|>"]))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(RECIPES.glob("*.y*ml")) if path.stem not in OF_ROUTED | OF_PATCHES],
    ids=lambda path: path.stem,
)
def test_a_recipe_of_the_repository_plans(
    path: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = zoo.adapters()
    monkeypatch.setattr(
        zoo, "zoo_folder", lambda name: adapters.get(name.removeprefix("zoo:smol-"), base)
    )
    text = path.read_text()
    (tmp_path / "recipes").mkdir()
    for kind, name in re.findall(r"(\w+): (?:\{\w+: )?\./([\w-]+)", text):
        if kind == "lora":
            shutil.copytree(adapters["german"], tmp_path / "recipes" / name)
        else:
            model(tmp_path / "recipes" / name)
    measured: Tensors = {"model.layers.0.self_attn.q_proj.weight": ("F32", (HIDDEN, HIDDEN))}
    for name in re.findall(r"\.\./([\w-]+-stats)/gram", text):
        write(tmp_path / name / "gram", measured)
    (tmp_path / "mergekit_lite").symlink_to(RECIPES.parent / "mergekit_lite")
    recipe = load(shutil.copy(path, tmp_path / "recipes"))
    plan = build(recipe)
    assert any(job.kind == "merge" or job.reads[0].source != "base" for job in plan.jobs)
    about = [line for line in text.splitlines() if line.startswith("#")]
    assert any("Choose it" in line for line in about), "say when to choose it"
