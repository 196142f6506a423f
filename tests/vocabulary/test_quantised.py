"""Vocabulary rules over quantised models: rows are gathered out of what their codes stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests import quantised as q
from tests.checkpoints import read_weights
from tests.vocabulary.models import EMBEDDING, HEAD, merge, model, tokens

Rows = dict[str, NDArray[np.float32]]

WORDS = ["<unk>", *(f"w{number}" for number in range(40))]
TURNED = ["<unk>", *(f"w{number}" for number in range(44, 9, -1))]
"""Other ids, five words more, and ten fewer: runs of single rows across all blocks of scales."""


def in_fp8(folder: Path, block: tuple[int, int] | None) -> Mapping[str, NDArray[np.float32]]:
    """Quantise all matrices of a model; return what its tensors stand for."""
    stored: q.Tensors = {}
    values: dict[str, NDArray[np.float32]] = {}
    for name, weight in read_weights(folder).items():
        if weight.ndim < 2:
            stored[name], values[name] = weight, weight.float().numpy()
        elif block is None:
            made, values[name] = q.fp8_whole(name, weight)
            stored |= made
        else:
            made, values[name] = q.fp8_blocks(name, weight, block)
            stored |= made
    config = json.loads((folder / "config.json").read_text())
    settings = {"quant_method": "fp8"} | ({"weight_block_size": list(block)} if block else {})
    q.save(folder, stored, settings, **config)
    return values


def by_token(folder: Path, value: NDArray[np.float32]) -> Rows:
    return {token: value[row] for token, row in tokens(folder).items()}


def merged(base: Rows, expert: Rows) -> Rows:
    """Return half of the way from one to the other, in fp32; who lacks a token changes nothing."""
    found = {}
    for token in {**base, **expert}:
        start = base.get(token, expert.get(token))
        assert start is not None
        end = expert.get(token, start)
        found[token] = start + np.float32(0.5) * (end - start)
    return found


@pytest.mark.parametrize("block", [(16, 16), (8, 32), None])
@pytest.mark.parametrize("coded", [("math",), ("base",), ("base", "math")])
@pytest.mark.parametrize("rule", ["union", "base_rows", "common_rows"])
def test_rows_of_tokens_are_those_that_the_codes_stand_for(
    tmp_path: Path, rule: str, coded: tuple[str, ...], block: tuple[int, int] | None
) -> None:
    torch.manual_seed(0)
    model(tmp_path / "base", words=WORDS, tied=False)
    model(tmp_path / "math", words=TURNED, tied=False, seed=1, rows=48)
    values = {
        name: {n: v.float().numpy() for n, v in read_weights(tmp_path / name).items()}
        for name in ("base", "math")
    }
    values |= {name: dict(in_fp8(tmp_path / name, block)) for name in coded}
    merge(tmp_path, vocab=rule)
    out = tmp_path / "out"
    listed = tokens(out)
    assert list(listed) == [*WORDS, *(["w44", "w43", "w42", "w41", "w40"] * (rule == "union"))]
    for name in (EMBEDDING, HEAD):
        base, math = (by_token(tmp_path / m, values[m][name]) for m in ("base", "math"))
        expected = merged(base, math)
        found = by_token(out, read_weights(out)[name].numpy())
        for token in listed:
            np.testing.assert_array_equal(found[token], expected[token], err_msg=token)
    plain = "model.layers.0.mlp.up_proj.weight"
    start, end = values["base"][plain], values["math"][plain]
    np.testing.assert_array_equal(
        read_weights(out)[plain].numpy(), start + np.float32(0.5) * (end - start)
    )
