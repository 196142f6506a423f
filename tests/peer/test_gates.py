"""Gates that mergekit makes from prompts, and ours of the same name."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mergekit_lite import api
from tests.calibrate.conftest import save_model
from tests.checkpoints import perturbed, read_weights
from tests.peer.conftest import PYTHON

pytestmark = pytest.mark.peer

PROGRAM = """
import json, sys
import transformers
from mergekit.common import ModelReference
from mergekit.moe.config import Expert
from mergekit.moe.router import get_gate_params
from safetensors.torch import save_file

folder, mode, out, text = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
tokenizer.padding_side = "left"
tokenizer.pad_token_id = tokenizer.eos_token_id
experts = [Expert(source_model=folder, **each) for each in json.loads(text)]
model = ModelReference.parse(folder)
found = get_gate_params(model, tokenizer, experts, mode=mode, device="cpu")
save_file({"gates": found.contiguous()}, out)
"""
PROMPTS = [
    {"positive_prompts": ["w4 w6 w8 w10 w5", "w12 w4"], "negative_prompts": ["w5 w7 w9"]},
    {"positive_prompts": ["w5 w7 w9", "w11 w5 w13 w7 w9", "w4"]},
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not os.environ.get(PYTHON):
        pytest.skip(f"{PYTHON} does not say where mergekit is")
    folder = tmp_path_factory.mktemp("gates")
    base = save_model(folder / "base", "llama")
    for seed, name in enumerate(("math", "code"), 1):
        perturbed(base, folder / name, seed=seed, scale=0.05)
    return folder


@pytest.mark.parametrize("mode", ["hidden", "cheap_embed"])
def test_gates_from_prompts_are_mergekit_s(home: Path, tmp_path: Path, mode: str) -> None:
    theirs = tmp_path / "theirs.safetensors"
    words = [str(home / "base"), mode, str(theirs), json.dumps(PROMPTS)]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([os.environ[PYTHON], "-c", PROGRAM, *words], env=clean, check=True)

    experts = [
        {
            "expert": name,
            "prompts": each["positive_prompts"],
            "negative": each.get("negative_prompts", []),
        }
        for name, each in zip(("math", "code"), PROMPTS, strict=True)
    ]
    recipe = {
        "schema_version": 1,
        "base": str(home / "base"),
        "experts": {name: {"model": str(home / name)} for name in ("math", "code")},
        "moe": {"target": "mixtral", "experts": experts, "gate": mode},
    }
    api.run(recipe, tmp_path / "out")

    gates = load_file(theirs)["gates"].float()
    ours = read_weights(tmp_path / "out")
    for layer in range(3):
        rows = ours[f"model.layers.{layer}.block_sparse_moe.gate.weight"].float()
        if mode == "hidden":
            assert torch.equal(rows, gates[layer])
        else:
            torch.testing.assert_close(rows, gates[layer], rtol=1e-5, atol=1e-6)
