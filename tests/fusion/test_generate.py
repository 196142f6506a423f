"""Fused models generate what the formulas say, with caches and through beam search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mergekit_lite.errors import RecipeError
from mergekit_lite.fusion import FusedLogits, Pair, fuse, fused_log_probabilities
from mergekit_lite.fusion.follower import Follower
from tests.calibrate.conftest import save_model

PROMPT = torch.tensor([[5, 9, 33], [7, 7, 12]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("fused")
    sizes = {"small": {}, "tuned": {}, "large": {"hidden_size": 48, "num_hidden_layers": 4}}
    return {
        name: save_model(root / name, "llama", seed, **own)
        for seed, (name, own) in enumerate(sizes.items())
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Any]:
    return {
        name: AutoModelForCausalLM.from_pretrained(folder).eval()
        for name, folder in folders.items()
    }


def run(large: Any, processor: FusedLogits, prompt: torch.Tensor = PROMPT, **own: Any) -> Any:
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return large.generate(prompt, logits_processor=[processor], **{**options, **own})


def plain(model: Any, **own: Any) -> Any:
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(PROMPT, **{**options, **own})


def test_identities(models: dict[str, Any]) -> None:
    small, tuned, large = models["small"], models["tuned"], models["large"]
    assert torch.equal(run(large, FusedLogits([Pair(small, tuned, 0.0)])), plain(large))
    assert torch.equal(run(large, FusedLogits([Pair(small, small, 1.0)])), plain(large))
    assert torch.equal(run(large, FusedLogits([Pair(small, small, "dynamic")])), plain(large))
    # Up-scaling a model of its own size gives the tuned one, at a fixed strength and a found one.
    for strength in (1.0, "dynamic"):
        processor = FusedLogits([Pair(small, tuned, strength)])
        assert torch.equal(run(small, processor), plain(tuned))
    assert not torch.equal(plain(tuned), plain(large))
    assert len(processor.alphas) == 6
    assert torch.allclose(processor.alphas[0][0], torch.ones(2, 1), atol=1e-3)


@torch.no_grad()
def stepwise(large: Any, small: Any, tuned: Any, ids: torch.Tensor, steps: int) -> torch.Tensor:
    """Generate without any cache."""
    for _ in range(steps):
        last = [model(ids).logits[:, -1].log_softmax(-1) for model in (large, small, tuned)]
        fused = fused_log_probabilities(last[0], [last[2] - last[1]], [1.3])
        ids = torch.cat([ids, fused.argmax(-1, keepdim=True)], 1)
    return ids


def test_caches_change_nothing(models: dict[str, Any]) -> None:
    small, tuned, large = models["small"], models["tuned"], models["large"]
    processor = FusedLogits([Pair(small, tuned, 1.3)])
    assert torch.equal(run(large, processor), stepwise(large, small, tuned, PROMPT, 6))
    # Two rows: three tokens of the prompt, and five that were generated before the last.
    assert [f.fed for f in processor._followers[0]] == [2 * 8, 2 * 8]


def test_a_follower_keeps_its_cache_through_reordered_rows(models: dict[str, Any]) -> None:
    follower = Follower(models["small"])
    follower.scores(PROMPT)
    swapped = torch.cat([PROMPT[[1, 0]], torch.tensor([[4], [6]])], 1)
    with torch.no_grad():
        wanted = models["small"](swapped).logits[:, -1]
    assert torch.allclose(follower.scores(swapped), wanted, atol=1e-5)
    assert follower.fed == 6 + 2
    other = torch.tensor([[9, 9, 9, 9, 9]])
    with torch.no_grad():
        wanted = models["small"](other).logits[:, -1]
    assert torch.allclose(follower.scores(other), wanted, atol=1e-5)
    assert follower.fed == 6 + 2 + 5


def test_beam_search(models: dict[str, Any]) -> None:
    small, tuned = models["small"], models["tuned"]
    found = run(small, FusedLogits([Pair(small, tuned, 1.0)]), num_beams=3)
    assert torch.equal(found, plain(tuned, num_beams=3))


def test_padding_on_the_left_is_not_read(models: dict[str, Any]) -> None:
    small, tuned, large = models["small"], models["tuned"], models["large"]
    alone = run(large, FusedLogits([Pair(small, tuned)]), PROMPT[:1])
    padded = torch.tensor([[0, 0, 5, 9, 33], [3, 4, 7, 7, 12]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    processor = FusedLogits([Pair(small, tuned)], mask)
    both = run(large, processor, padded, attention_mask=mask)
    assert torch.equal(both[0, 2:], alone[0])


def test_loaded_from_folders(folders: dict[str, Path], models: dict[str, Any]) -> None:
    small, tuned, large = (str(folders[name]) for name in ("small", "tuned", "large"))
    fusion = fuse(large, [(small, tuned)], 1.3)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    wanted = stepwise(models["large"], models["small"], models["tuned"], PROMPT, 6)
    mask = torch.ones_like(PROMPT)
    assert torch.equal(fusion.generate(PROMPT, mask, **options), wanted)


def test_another_vocabulary_is_refused(
    folders: dict[str, Path], models: dict[str, Any], tmp_path: Path
) -> None:
    narrow = save_model(tmp_path / "narrow", "llama", vocab_size=60)
    pair = Pair(AutoModelForCausalLM.from_pretrained(narrow), models["tuned"])
    with pytest.raises(RecipeError, match="base of pair 1 60, tuned of pair 1 64"):
        FusedLogits([pair])
    both = Pair(pair.base, pair.base)
    with pytest.raises(RecipeError, match="the large model 64, the small models 60"):
        FusedLogits([both])(PROMPT, torch.zeros(2, 64))
    with pytest.raises(RecipeError, match="knows 60 tokens, the vocabulary has 64"):
        FusedLogits([both], vocabulary=64)

    other = save_model(tmp_path / "other", "llama")
    data = json.loads((other / "tokenizer.json").read_text())
    words = data["model"]["vocab"]
    words["w10"], words["w11"] = words["w11"], words["w10"]
    (other / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(RecipeError, match=r"token 10 is 'w11', of .* it is 'w10'"):
        fuse(str(folders["large"]), [(str(folders["small"]), str(other))])


def test_matrices_padded_to_other_lengths_are_fused(models: dict[str, Any], tmp_path: Path) -> None:
    wide = AutoModelForCausalLM.from_pretrained(
        save_model(tmp_path / "wide", "llama", seed=2, vocab_size=80)
    )
    processor = FusedLogits([Pair(models["small"], models["tuned"])], vocabulary=64)
    fused = processor(PROMPT, wide(PROMPT).logits[:, -1].detach())
    assert (fused[:, 64:] == float("-inf")).all()
    assert torch.allclose(fused.exp().sum(-1), torch.ones(2))
