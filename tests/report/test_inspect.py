"""Summaries of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mergekit_lite.report.inspect import matching, summarise
from mergekit_lite.sources import resolve
from tests.checkpoints import write_weights


def test_counts_by_dtype_and_role(tmp_path: Path) -> None:
    write_weights(
        tmp_path,
        {
            "model.layers.0.mlp.up_proj.weight": torch.zeros(4, 2, dtype=torch.bfloat16),
            "model.layers.1.mlp.up_proj.weight": torch.zeros(4, 2, dtype=torch.bfloat16),
            "model.norm.weight": torch.zeros(3),
        },
    )
    model = resolve(str(tmp_path), relative_to=Path())
    summary = summarise(model)
    assert summary.layers == 2
    assert (summary.total.tensors, summary.total.entries, summary.total.nbytes) == (3, 19, 44)
    assert summary.dtypes["BF16"].entries == 16
    assert summary.roles["mlp.up"].tensors == 2
    assert json.loads(json.dumps(summary.plain()))["roles"]["norm"]["nbytes"] == 12
    assert [info.name for info in matching(model, "*norm*")] == ["model.norm.weight"]


def test_config_facts(base_folder: Path) -> None:
    summary = summarise(resolve(str(base_folder), relative_to=Path()))
    assert summary.config["model_type"] == "llama"
    assert summary.config["tie_word_embeddings"] is True
    assert summary.adapter == {}
