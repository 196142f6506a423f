"""Adapters beside models of other vocabularies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mergekit_lite
from tests.checkpoints import read_weights, write_json
from tests.tokenizer.tokenizers import word_level
from tests.vocabulary.models import EMBEDDING, HEAD, WORDS, copy_of, model, require_sound, tokens

PREFIX = "base_model.model.model.embed_tokens"


def adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    given = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "base"}
    write_json(folder / "adapter_config.json", {**given, "target_modules": [], **config})
    return folder


def factors(rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        f"{PREFIX}.lora_embedding_A": torch.randn(2, rows, generator=generator),
        f"{PREFIX}.lora_embedding_B": torch.randn(32, 2, generator=generator),
    }


def merged(root: Path, **recipe: object) -> dict[str, torch.Tensor]:
    given = {
        "base": str(root / "base"),
        "experts": {
            "math": {"model": str(root / "math"), "weight": 0.0},
            "tuned": {"lora": str(root / "tuned"), "weight": 1.0},
        },
        "steps": ["task_arithmetic"],
        "output": {"dtype": "float32"},
        **recipe,
    }
    mergekit_lite.run(mergekit_lite.plan(given), root / "out", overwrite=True)
    require_sound(root / "out")
    value = read_weights(root / "out")[EMBEDDING]
    return {token: value[row] for token, row in tokens(root / "out").items()}


@pytest.mark.parametrize("recipe", [{"vocab": "union"}, {"tokenizer": {"source": "math"}}])
def test_a_low_rank_difference_follows_its_tokens(
    tmp_path: Path, recipe: dict[str, object]
) -> None:
    model(tmp_path / "base")
    ids = {word: (3 * n + 1) % len(WORDS) for n, word in enumerate(WORDS)}
    copy_of(tmp_path / "base", tmp_path / "math", ids=ids, more=["<a>"])
    parts = factors(len(WORDS))
    adapter(tmp_path / "tuned", parts, target_modules=["embed_tokens"])
    delta = 2.0 * (parts[f"{PREFIX}.lora_embedding_B"] @ parts[f"{PREFIX}.lora_embedding_A"]).T
    out = merged(tmp_path, **recipe)
    base = read_weights(tmp_path / "base")[EMBEDDING]
    for row, word in enumerate(WORDS):
        torch.testing.assert_close(out[word], base[row] + delta[row], rtol=1e-5, atol=1e-5)
    # The adapter has no row for it and changes nothing.
    assert torch.equal(out["<a>"], read_weights(tmp_path / "math")[EMBEDDING][8])


def test_whole_rows_of_an_adapter_with_tokens_of_its_own(tmp_path: Path) -> None:
    """Resized embeddings are saved whole beside the factors, with the tokenizer."""
    model(tmp_path / "base")
    copy_of(tmp_path / "base", tmp_path / "math")
    rows = torch.randn(9, 32, generator=torch.Generator().manual_seed(5))
    name = f"{PREFIX}.weight"
    adapter(tmp_path / "tuned", {name: rows}, modules_to_save=["embed_tokens"])
    data = word_level(WORDS, [("<tool>", len(WORDS))])
    write_json(tmp_path / "tuned" / "tokenizer.json", data)
    out = merged(tmp_path, vocab="union")
    assert list(out) == [*WORDS, "<tool>"]
    torch.testing.assert_close(torch.stack(list(out.values())), rows, rtol=1e-5, atol=1e-6)


def test_slices_and_vocabularies_together(tmp_path: Path) -> None:
    model(tmp_path / "base", tied=True)
    copy_of(tmp_path / "base", tmp_path / "math", more=["<a>"], tied=False)
    plan = mergekit_lite.plan(
        {
            "base": str(tmp_path / "base"),
            "experts": {"math": {"model": str(tmp_path / "math"), "weight": 1.0}},
            "steps": ["task_arithmetic"],
            "slices": [{"take": "base", "layers": "0-1"}, {"take": "math", "layers": "1"}],
            "vocab": "union",
            "head": "untie",
        }
    )
    mergekit_lite.run(plan, tmp_path / "out")
    require_sound(tmp_path / "out")
    found = read_weights(tmp_path / "out")
    assert found[HEAD].shape == (9, 32)
    torch.testing.assert_close(found[EMBEDDING], read_weights(tmp_path / "math")[EMBEDDING])
    torch.testing.assert_close(found[HEAD], read_weights(tmp_path / "math")[HEAD])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["vocab_size"]) == (3, 9)
