"""What is written computes the same in vLLM, on a GPU (V18)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite import api
from tests.calibrate.conftest import save_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.runtime,
    pytest.mark.filterwarnings("ignore"),  # vLLM has warnings of its own
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
SIZES: dict[str, Any] = {
    # Kernels of vLLM want heads of 64 and more, and widths that are multiples of 64.
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "num_hidden_layers": 2,
}
IDS = [3, 17, 42, 8, 60, 21, 5, 33, 12, 50, 28, 9]
MOST = 0.25
"""What a log-probability may differ by: logits up to 12, in 16 bits."""


def written(folder: Path, donor: str, target: str) -> Path:
    """Write a routed model of two experts that differ, by turns, in bf16."""
    base = save_model(folder / "base", donor, **SIZES)
    save_model(folder / "other", donor, seed=1, **SIZES)
    recipe = {
        "base": str(base),
        "experts": {"other": str(folder / "other")},
        "moe": {
            "target": target,
            "experts": ["base", "other"] * 2,
            "gate": {"method": "random", "std": 1.0},
        },
        "output": {"dtype": "bfloat16"},
    }
    api.run(recipe, folder / "routed")
    return folder / "routed"


def in_transformers(folder: Path) -> list[float]:
    """Return the log-probability of each token but the first."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda().eval()
    ids = torch.tensor([IDS], device="cuda")
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].float()
    found: list[float] = logits.log_softmax(1).gather(1, ids[0, 1:, None])[:, 0].tolist()
    return found


def in_vllm(folder: Path) -> list[float]:
    """Return the same, as vLLM has it."""
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed")
    model = vllm.LLM(
        model=str(folder),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=64,
        gpu_memory_utilization=0.3,
    )
    asked = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0)
    (found,) = model.generate([{"prompt_token_ids": IDS}], asked)
    return [
        one[token].logprob for one, token in zip(found.prompt_logprobs[1:], IDS[1:], strict=True)
    ]


@pytest.mark.parametrize(
    ("donor", "target"), [("llama", "mixtral"), ("qwen3", "qwen3_moe"), ("llama", "glm4_moe")]
)
def test_vllm_loads_it_and_says_the_same(tmp_path: Path, donor: str, target: str) -> None:
    folder = written(tmp_path, donor, target)
    there, here = in_vllm(folder), in_transformers(folder)
    assert max(abs(a - b) for a, b in zip(there, here, strict=True)) < MOST
