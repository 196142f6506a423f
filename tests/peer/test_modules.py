"""Models of several modules, each merged in its own way, by both tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoints import write_json, write_weights
from tests.peer.conftest import Job, Peer, Weights

pytestmark = pytest.mark.peer
Ours = Callable[..., Weights]

RECIPE = """
merge_method: task_arithmetic
base_model: base
modules:
  text_decoder:
    slices:
      - sources:
          - {model: base, layer_range: [0, 2]}
          - {model: math, layer_range: [0, 2], parameters: {weight: [0.2, 0.7]}}
      - sources:
          - {model: base, layer_range: [1, 4]}
          - model: code
            layer_range: [1, 4]
            parameters: {weight: [{filter: mlp, value: 0.3}, {value: [0, 1]}]}
  vision_tower:
    models:
      - {model: math, parameters: {weight: 0.4}}
      - {model: code, parameters: {weight: [{filter: feed_forward, value: 0.1}, {value: 0.6}]}}
  multi_modal_projector:
    models: [{model: code}]
parameters: {weight: 0.5}
dtype: float32
"""

HIDDEN, SEES = 16, 8


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the tensors of a Mistral 3 that is as small as can be."""
    square, sees = (HIDDEN, HIDDEN), (SEES, SEES)
    found: dict[str, tuple[int, ...]] = {
        "language_model.model.embed_tokens.weight": (32, HIDDEN),
        "language_model.model.norm.weight": (HIDDEN,),
        "language_model.lm_head.weight": (32, HIDDEN),
        "multi_modal_projector.linear_1.weight": (HIDDEN, SEES),
        "multi_modal_projector.linear_2.weight": square,
        "multi_modal_projector.norm.weight": (SEES,),
        "multi_modal_projector.patch_merger.merging_layer.weight": (SEES, 4 * SEES),
        "vision_tower.patch_conv.weight": (SEES, 3, 2, 2),
        "vision_tower.ln_pre.weight": (SEES,),
    }
    for layer in range(4):
        start = f"language_model.model.layers.{layer}."
        linear = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
        linear += [f"self_attn.{name}_proj" for name in "qkvo"]
        found |= {f"{start}{name}.weight": square for name in linear}
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{start}{name}.weight"] = (HIDDEN,)
    for layer in range(2):
        start = f"vision_tower.transformer.layers.{layer}."
        linear = [f"feed_forward.{name}_proj" for name in ("gate", "up", "down")]
        linear += [f"attention.{name}_proj" for name in "qkvo"]
        found |= {f"{start}{name}.weight": sees for name in linear}
        found |= {f"{start}{name}_norm.weight": (SEES,) for name in ("ffn", "attention")}
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a base and two experts."""
    root = tmp_path_factory.mktemp("sees")
    text = {
        "model_type": "mistral", "hidden_size": HIDDEN, "num_hidden_layers": 4, "vocab_size": 32,
        "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": HIDDEN,
    }  # fmt: skip
    vision = {
        "model_type": "pixtral", "hidden_size": SEES, "num_hidden_layers": 2, "patch_size": 2,
        "num_attention_heads": 2, "intermediate_size": SEES,
    }  # fmt: skip
    config = {
        "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
        "text_config": text, "vision_config": vision, "tie_word_embeddings": False,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    for name in ("base", "math", "code"):
        tensors = {n: torch.randn(shape, generator=generator) for n, shape in shapes().items()}
        write_weights(root / name, tensors)
        write_json(root / name / "config.json", config)
    return root


def test_slices_of_one_module_beside_others(
    place: Path, tmp_path_factory: pytest.TempPathFactory, peer_python: str, ours: Ours,
    tmp_path: Path,
) -> None:  # fmt: skip
    peer = Peer(peer_python, tmp_path_factory.mktemp("mergekit-modules"))
    peer.run([Job("modules", RECIPE, place)])
    theirs = peer.weights("modules")
    mine = ours(RECIPE, place)
    assert mine.keys() == theirs.keys()
    for tensor, value in theirs.items():
        near = 1e-6 * float(value.abs().max())
        torch.testing.assert_close(
            mine[tensor], value, rtol=1e-5, atol=near, msg=lambda m, t=tensor: f"{t}: {m}"
        )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 5
    assert config["vision_config"]["num_hidden_layers"] == 2
