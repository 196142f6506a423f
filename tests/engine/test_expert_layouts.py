"""Routed models in two layouts merge into the layout of the base, to the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergekit_lite import api
from mergekit_lite.engine.pieced import Pieced
from mergekit_lite.errors import RecipeError
from mergekit_lite.plan.types import Piece
from tests.checkpoints import read_weights, write_weights

LAYERS, EXPERTS, WIDTH, INNER = 2, 3, 8, 5
Weights = dict[str, Tensor]


def per_expert(seed: int, names: tuple[str, str, str, str]) -> Weights:
    """A routed model with a matrix for each expert; `names` are module, gate, up and down."""
    generator = torch.Generator().manual_seed(seed)
    module, gate, up, down = names
    made: Weights = {"model.embed_tokens.weight": torch.randn(16, WIDTH, generator=generator)}
    for layer in range(LAYERS):
        root = f"model.layers.{layer}.{module}"
        made[f"{root}.gate.weight"] = torch.randn(EXPERTS, WIDTH, generator=generator)
        for expert in range(EXPERTS):
            for part, shape in (
                (gate, (INNER, WIDTH)),
                (up, (INNER, WIDTH)),
                (down, (WIDTH, INNER)),
            ):
                name = f"{root}.experts.{expert}.{part}.weight"
                made[name] = torch.randn(shape, generator=generator)
    return {name: value.bfloat16() for name, value in made.items()}


def fused(weights: Weights, names: tuple[str, str, str, str]) -> Weights:
    """The same model with two 3-D tensors a layer, below `mlp`."""
    module, gate, up, down = names
    made: Weights = {}
    for name, value in weights.items():
        if ".experts." not in name:
            made[name.replace(f".{module}.", ".mlp.")] = value
    for layer in range(LAYERS):
        root = f"model.layers.{layer}.{module}.experts"

        def part(expert: int, name: str, root: str = root) -> Tensor:
            return weights[f"{root}.{expert}.{name}.weight"]

        both = [torch.cat([part(e, gate), part(e, up)]) for e in range(EXPERTS)]
        made[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.stack(both)
        downs = [part(e, down) for e in range(EXPERTS)]
        made[f"model.layers.{layer}.mlp.experts.down_proj"] = torch.stack(downs)
    return made


QWEN = ("mlp", "gate_proj", "up_proj", "down_proj")
MIXTRAL = ("block_sparse_moe", "w1", "w3", "w2")


def merged(folder: Path, base: Weights, expert: Weights, **recipe: object) -> Weights:
    write_weights(folder / "base", base)
    write_weights(folder / "expert", expert)
    said = {
        "base": str(folder / "base"),
        "experts": {"e": {"model": str(folder / "expert"), "weight": 0.5}},
        "steps": [{"ties": {"density": 0.5}}],
        **recipe,
    }
    api.run(said, folder / "out")
    return read_weights(folder / "out")


@pytest.mark.parametrize("names", [QWEN, MIXTRAL])
def test_each_layout_reads_as_the_other(tmp_path: Path, names: tuple[str, str, str, str]) -> None:
    """Shows V3, as test_expert_forms.py does of other families."""
    base, expert = per_expert(1, names), per_expert(2, names)
    want = merged(tmp_path / "same", base, expert)
    split = merged(tmp_path / "split", base, fused(expert, names))
    assert list(split) == list(want)
    assert all(torch.equal(split[name], want[name]) for name in want)
    both = merged(tmp_path / "both", fused(base, names), fused(expert, names))
    stacked = merged(tmp_path / "stacked", fused(base, names), expert)
    assert list(stacked) == list(both)
    assert all(torch.equal(stacked[name], both[name]) for name in both)
    report = json.loads((tmp_path / "split" / "out" / "merge_report.json").read_text())
    assert report["inputs"]["e"]["tensors_extra"] == []
    assert any("another layout" in warning for warning in report["warnings"])


def test_a_taken_expert_has_the_very_bits(tmp_path: Path) -> None:
    base, expert = per_expert(1, QWEN), per_expert(2, QWEN)
    taken = merged(tmp_path / "a", base, fused(expert, QWEN), steps=[{"take": {"source": "e"}}])
    assert all(torch.equal(taken[name], expert[name]) for name in expert)
    stacked = fused(base, QWEN)
    taken = merged(tmp_path / "b", stacked, expert, steps=[{"take": {"source": "e"}}])
    want = fused(expert, QWEN)
    assert all(torch.equal(taken[name], want[name]) for name in want)


class Numbers:
    """A supply of fp32 entries that count from a number on."""

    dtype = "F32"
    is_delta = False

    def __init__(self, begin: int) -> None:
        self.begin = begin

    def offset(self, first: int) -> int:
        return first

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        out.view(np.float32)[:] = np.arange(first, first + count) + self.begin


def test_tiles_that_cross_pieces() -> None:
    small, large = Numbers(0), Numbers(100)
    whole = Pieced(
        [(Piece("a", 2, 3), small), (Piece("b", 0, 4), large), (Piece("a", 7, 2), small)]
    )
    want = [2, 3, 4, 100, 101, 102, 103, 7, 8]
    for first in range(9):
        for count in range(1, 10 - first):
            out = np.zeros(4 * count, np.uint8)
            whole.fill(first, count, out)
            assert out.view(np.float32).tolist() == want[first : first + count]


def test_routers_are_the_bases_unless_asked_for(tmp_path: Path) -> None:
    """Shows F24e."""
    base, expert = per_expert(1, QWEN), per_expert(2, QWEN)
    gate = "model.layers.1.mlp.gate.weight"
    linear = [{"linear": {"weights": {"base": 1, "e": 1}}}]
    mean = ((base[gate].float() + expert[gate].float()) / 2).bfloat16()
    assert torch.equal(merged(tmp_path / "a", base, expert, steps=linear)[gate], base[gate])
    asked = merged(tmp_path / "b", base, expert, steps=linear, routers="merge")
    assert torch.equal(asked[gate], mean)
    rules = [{"match": {"role": "router"}, "take": "e"}]
    taken = merged(tmp_path / "c", base, expert, steps=linear, rules=rules)
    assert torch.equal(taken[gate], expert[gate])
    alone = merged(tmp_path / "d", base, expert, steps=[{"take": {"source": "e"}}])
    assert torch.equal(alone[gate], expert[gate])
    theirs = merged(tmp_path / "e", base, expert, steps=linear, compat="mergekit")
    assert torch.equal(theirs[gate], mean)


def test_another_number_of_experts_is_refused_with_both_layouts(tmp_path: Path) -> None:
    base, expert = per_expert(1, QWEN), fused(per_expert(2, QWEN), QWEN)
    for layer in range(LAYERS):
        for part in ("gate_up_proj", "down_proj"):
            name = f"model.layers.{layer}.mlp.experts.{part}"
            expert[name] = expert[name][:2].contiguous()
    with pytest.raises(RecipeError) as caught:
        merged(tmp_path, base, expert)
    (problem,) = map(str, caught.value.problems)
    assert "in a layout that cannot be read as the base's: 2 tensors" in problem
    assert "experts.down_proj` 2x8x5; the base has 9 tensors" in problem
    assert "experts.0.down_proj.weight` 8x5" in problem
