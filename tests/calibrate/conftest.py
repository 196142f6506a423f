"""Tiny models of several families, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import write_tokenizer

VOCABULARY = 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "bloom": {"n_layer": 3, "n_head": 4},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48, "n_positions": 64},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"max_position_embeddings": 66, "pad_token_id": 0},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "llama": {"pad_token_id": 0},
}


def save_model(folder: Path, family: str, seed: int = 0, labels: int = 0, **settings: Any) -> Path:
    """Save a random model of a family, with a tokenizer of words `w3` to `w63`.

    With `labels` it gives texts that many labels; else it is a causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    if labels:
        settings = {**ENCODERS[family], "num_labels": labels, **settings}
    else:
        settings = {**FAMILIES[family], **settings}
    config = AutoConfig.for_model(family, **{**SIZES, **settings})
    torch.manual_seed(seed)
    kind = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    model = kind.from_config(config, dtype=torch.float32)
    for name, weight in model.named_parameters():
        is_norm = any(word in name.lower() for word in ("norm", "ln_"))
        torch.nn.init.normal_(weight, 1.0 if is_norm else 0.0, 0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder, VOCABULARY)
    return folder


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model of each family, by name. Read only."""
    home = tmp_path_factory.mktemp("families")
    return {family: save_model(home / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def labelling(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model of each family that gives texts three labels. Read only."""
    home = tmp_path_factory.mktemp("labelling")
    return {family: save_model(home / family, family, labels=3) for family in ENCODERS}
