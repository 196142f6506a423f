"""A loss followed back layer by layer gives the gradients of the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergekit_lite.calibrate.importance import importances
from mergekit_lite.calibrate.run import Settings, prepare
from mergekit_lite.calibrate.texts import prompts
from mergekit_lite.errors import DataError
from mergekit_lite.sources import Model, resolve

LINES = [" ".join(f"w{3 + (i * j) % 60}" for i in range(3 + j)) for j in range(1, 9)]


def prepared_of(folder: Path, lines: list[str]) -> tuple[Any, Model]:
    model = resolve(str(folder), relative_to=Path())
    prepared = prepare(model, prompts("texts", lines), [], Settings(batch=30))
    return prepared, model


def whole(folder: Path, prepared: Any) -> tuple[list[Any], list[Any]]:
    """Return for every layer |h dL/dh| of each token, and what its network is shown."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    count = len(model.model.layers)
    matter: list[list[Any]] = [[] for _ in range(count)]
    inputs: list[list[Any]] = [[] for _ in range(count)]
    for batch in prepared.batches:
        shown: dict[int, Any] = {}
        for number, layer in enumerate(model.model.layers):
            layer.mlp.register_forward_pre_hook(
                lambda module, own, n=number, batch=batch: inputs[n].append(
                    own[0].detach()[batch.mask]
                )
            )
            layer.mlp.down_proj.register_forward_pre_hook(
                lambda module, own, n=number, shown=shown: shown.__setitem__(n, own[0])
            )
        logits = model(batch.ids, attention_mask=batch.mask.long(), use_cache=False).logits
        targets = batch.ids[:, 1:].masked_fill(~batch.mask[:, 1:], -100)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="sum"
        )
        slopes = torch.autograd.grad(loss, [shown[n] for n in range(count)])
        for number, slope in enumerate(slopes):
            matter[number].append((shown[number] * slope).abs().detach()[batch.mask])
        for layer in model.model.layers:
            for module in (layer.mlp, layer.mlp.down_proj):
                module._forward_pre_hooks.clear()
    return [torch.cat(one) for one in matter], [torch.cat(one) for one in inputs]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_neurons_matter_as_gradients_of_the_whole_model_say(
    saved: dict[str, Path], tmp_path: Path, family: str
) -> None:
    prepared, model = prepared_of(saved[family], LINES)
    matter, inputs = whole(saved[family], prepared)
    tokens = prepared.samples.tokens
    labels = np.arange(tokens) * 7 % 3
    seen = []
    for index, found in importances(prepared, model, tmp_path):
        seen.append(index)
        assert found.inputs is not None
        assert found.slopes is not None
        np.testing.assert_allclose(found.inputs, inputs[index], atol=1e-5)
        if index == 1:
            continue  # what is not asked for goes back all the same
        sums = found.slopes(labels, 3)
        wanted = np.stack([matter[index].numpy()[labels == group].sum(0) for group in range(3)])
        np.testing.assert_allclose(sums, wanted, rtol=2e-3, atol=1e-5)
    assert seen == [2, 1, 0]
    assert list(tmp_path.iterdir()) == []


def test_a_routed_layer_has_no_down_projection_to_look_at(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    prepared, model = prepared_of(saved["mixtral"], LINES[:2])
    found = importances(prepared, model, tmp_path)
    with pytest.raises(DataError, match="no down projection"):
        list(found)
