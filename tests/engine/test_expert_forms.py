"""Routed experts in every layout that families store, read in that of the base."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergekit_lite import api, load, plan
from mergekit_lite.engine.pieced import Pieced, Turned, in_order
from mergekit_lite.errors import RecipeError
from mergekit_lite.plan.types import Piece, Plan, Turn
from tests import quantised
from tests.checkpoints import read_weights, write_json, write_weights

EXPERTS, WIDTH, INNER = 3, 6, 5
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Experts:
    """The experts of one layer: gate and up (inner x width) and down (width x inner) of each."""

    gate: list[Tensor]
    up: list[Tensor]
    down: list[Tensor]
    biases: dict[str, list[Tensor]]

    @classmethod
    def drawn(cls, seed: int) -> Experts:
        generator = torch.Generator().manual_seed(seed)

        def some(*shape: int) -> list[Tensor]:
            made = torch.randn(EXPERTS, *shape, generator=generator).bfloat16()
            return list(made.clone())

        biases = {"gate": some(INNER), "up": some(INNER), "down": some(WIDTH)}
        return cls(some(INNER, WIDTH), some(INNER, WIDTH), some(WIDTH, INNER), biases)


def by_turns(gate: Tensor, up: Tensor) -> Tensor:
    """Gate and up outputs, one of each at a time, along the last dimension."""
    out = torch.empty(*gate.shape[:-1], 2 * gate.shape[-1], dtype=gate.dtype)
    out[..., 0::2], out[..., 1::2] = gate, up
    return out


def single(experts: Experts) -> Weights:
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    made = {}
    for part, name in names.items():
        for number, value in enumerate(getattr(experts, part)):
            made[f"mlp.experts.{number}.{name}.weight"] = value
        for number, value in enumerate(experts.biases[part]):
            made[f"mlp.experts.{number}.{name}.bias"] = value
    return made


def mixtral(experts: Experts) -> Weights:
    made = {}
    for part, name in {"gate": "w1", "up": "w3", "down": "w2"}.items():
        for number, value in enumerate(getattr(experts, part)):
            made[f"block_sparse_moe.experts.{number}.{name}.weight"] = value
    return made


def halves(experts: Experts) -> Weights:
    both = [torch.cat(pair) for pair in zip(experts.gate, experts.up, strict=True)]
    biases = zip(experts.biases["gate"], experts.biases["up"], strict=True)
    return {
        "mlp.experts.gate_up_proj": torch.stack(both),
        "mlp.experts.down_proj": torch.stack(experts.down),
        "mlp.experts.gate_up_proj_bias": torch.stack([torch.cat(pair) for pair in biases]),
        "mlp.experts.down_proj_bias": torch.stack(experts.biases["down"]),
    }


def granite(experts: Experts) -> Weights:
    fused = halves(experts)
    return {
        "block_sparse_moe.input_linear.weight": fused["mlp.experts.gate_up_proj"],
        "block_sparse_moe.output_linear.weight": fused["mlp.experts.down_proj"],
    }


def llama4(experts: Experts) -> Weights:
    both = [torch.cat((g.T, u.T), 1) for g, u in zip(experts.gate, experts.up, strict=True)]
    return {
        "feed_forward.experts.gate_up_proj": torch.stack(both),
        "feed_forward.experts.down_proj": torch.stack([one.T for one in experts.down]),
    }


def gpt_oss(experts: Experts) -> Weights:
    both = [by_turns(g.T, u.T) for g, u in zip(experts.gate, experts.up, strict=True)]
    biases = zip(experts.biases["gate"], experts.biases["up"], strict=True)
    return {
        "mlp.experts.gate_up_proj": torch.stack(both),
        "mlp.experts.down_proj": torch.stack([one.T for one in experts.down]),
        "mlp.experts.gate_up_proj_bias": torch.stack([by_turns(*pair) for pair in biases]),
        "mlp.experts.down_proj_bias": torch.stack(experts.biases["down"]),
    }


LAYOUTS: dict[str, tuple[Callable[[Experts], Weights], str, str]] = {
    "single": (single, "gate.weight", ""),
    "mixtral": (mixtral, "gate.weight", ""),
    "halves": (halves, "router.weight", ""),
    "granite": (granite, "router.layer.weight", ""),
    "llama4": (llama4, "router.weight", "llama4_text"),
    "gpt_oss": (gpt_oss, "router.weight", "gpt_oss"),
}
WITH_BIAS = ("single", "halves", "gpt_oss")


def write(folder: Path, layout: str, seed: int, *, bias: bool, model_type: str = "") -> Weights:
    """Write a model of two layers in a layout and return its weights."""
    build, router, own = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(seed)
    made = {"model.embed_tokens.weight": torch.randn(16, WIDTH, generator=generator).bfloat16()}
    for layer in range(2):
        experts = build(Experts.drawn(10 * seed + layer))
        module = next(iter(experts)).partition(".")[0]
        # The order of the rows of a file follows names, whatever the layout.
        experts[f"{module}.{router}"] = torch.randn(EXPERTS, WIDTH, generator=generator).bfloat16()
        made |= {
            f"model.layers.{layer}.{name}": value.contiguous()
            for name, value in experts.items()
            if bias or "bias" not in name
        }
    write_weights(folder, made)
    if model_type or own:
        write_json(folder / "config.json", {"model_type": model_type or own})
    return made


def merged(base: Path, expert: Path, out: Path, **recipe: object) -> Weights:
    said = {"base": str(base), "experts": {"e": str(expert)}, **recipe}
    api.run({"steps": [{"take": {"source": "e"}}], **said}, out)
    return read_weights(out)


PAIRS = [
    (*pair, bias)
    for pair in itertools.permutations(LAYOUTS, 2)
    for bias in (False, True)
    if not bias or set(pair) <= set(WITH_BIAS)
]


@pytest.mark.parametrize(("base", "expert", "bias"), PAIRS)
def test_an_expert_of_any_layout_has_the_very_bits(
    tmp_path: Path, base: str, expert: str, bias: bool
) -> None:
    types = {LAYOUTS[base][2], LAYOUTS[expert][2]} - {""}
    before = write(tmp_path / "base", base, 1, bias=bias)
    write(tmp_path / "expert", expert, 2, bias=bias)
    if len(types) > 1:
        (tmp_path / "expert" / "config.json").unlink()
    want = write(tmp_path / "want", base, 2, bias=bias)
    if len(types) > 1 and expert in ("llama4", "gpt_oss"):
        with pytest.raises(RecipeError, match="nothing tells whether gate and up take turns"):
            merged(tmp_path / "base", tmp_path / "expert", tmp_path / "out")
        return
    got = merged(tmp_path / "base", tmp_path / "expert", tmp_path / "out")
    assert got.keys() == before.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize(
    "pair", [("single", "gpt_oss"), ("gpt_oss", "single"), ("llama4", "halves")]
)
def test_merging_gives_the_same_bytes_as_of_one_layout(
    tmp_path: Path, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, expert = pair
    for name, layout, seed in (("base", base, 1), ("expert", expert, 2), ("same", base, 2)):
        write(tmp_path / name, layout, seed, bias=False)
    recipe = {"steps": [{"ties": {"density": 0.5}}], "routers": "merge"}
    want = merged(tmp_path / "base", tmp_path / "same", tmp_path / "a", **recipe)
    got = merged(tmp_path / "base", tmp_path / "expert", tmp_path / "b", **recipe)
    monkeypatch.setattr("mergekit_lite.engine.row.LEAST_TILE", 7)
    monkeypatch.setattr("mergekit_lite.engine.row.tile_and_block", lambda tile, width: (7, 2048))
    small = merged(tmp_path / "base", tmp_path / "expert", tmp_path / "c", **recipe)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert all(torch.equal(small[name], want[name]) for name in want)


def test_biases_that_the_base_lacks_are_told_of(tmp_path: Path) -> None:
    write(tmp_path / "base", "single", 1, bias=False)
    write(tmp_path / "expert", "gpt_oss", 2, bias=True)
    with pytest.raises(RecipeError, match=re.escape("gate_up_proj_bias")):
        merged(tmp_path / "base", tmp_path / "expert", tmp_path / "out")


def test_equal_shapes_do_not_hide_another_layout(tmp_path: Path) -> None:
    """Twice the inner size is the width, so that both layouts give gate and up one shape."""
    shape = (EXPERTS, 8, 8)
    values = torch.arange(3 * 64).reshape(shape).float()
    down = torch.arange(3 * 32).float()
    root = "model.layers.0.mlp.experts"
    write_weights(
        tmp_path / "base",
        {f"{root}.gate_up_proj": values + 1000, f"{root}.down_proj": down.reshape(3, 8, 4) + 1000},
    )
    write_weights(
        tmp_path / "expert",
        {f"{root}.gate_up_proj": values, f"{root}.down_proj": down.reshape(3, 4, 8)},
    )
    write_json(tmp_path / "expert" / "config.json", {"model_type": "llama4_text"})
    got = merged(tmp_path / "base", tmp_path / "expert", tmp_path / "out")
    assert torch.equal(got[f"{root}.gate_up_proj"], values.transpose(1, 2))
    assert torch.equal(got[f"{root}.down_proj"], down.reshape(3, 4, 8).transpose(1, 2))


def test_a_layout_that_the_family_does_not_have_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "base", "gpt_oss", 1, bias=False)
    write(tmp_path / "expert", "halves", 2, bias=False, model_type="gpt_oss")
    with pytest.raises(RecipeError, match="nothing tells whether gate and up take turns"):
        merged(tmp_path / "base", tmp_path / "expert", tmp_path / "out")


def test_a_plan_remembers_how_entries_are_turned(tmp_path: Path) -> None:
    write(tmp_path / "base", "single", 1, bias=False)
    write(tmp_path / "expert", "gpt_oss", 2, bias=False)
    said = {"base": str(tmp_path / "base"), "experts": {"e": str(tmp_path / "expert")}}
    made = plan(load({**said, "steps": [{"take": {"source": "e"}}]}))
    again = Plan.from_json(made.to_json())
    assert again.jobs == made.jobs
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    read = next(job for job in made.jobs if job.name == name).reads[0]
    block = 2 * INNER * WIDTH
    assert read.pieces == (Piece("model.layers.1.mlp.experts.gate_up_proj", 2 * block, block),)
    assert read.turn == Turn((WIDTH, INNER, 2), (2, 1, 0), INNER * WIDTH)
    assert read.held == 2 * 2 * block
    json.loads(made.to_json())


def test_codes_of_fused_experts_are_decoded_on_the_way(tmp_path: Path) -> None:
    root = "model.layers.0.mlp.experts"
    both, first = quantised.mxfp4_experts(f"{root}.gate_up_proj", EXPERTS, 64, 2)
    down, second = quantised.mxfp4_experts(f"{root}.down_proj", EXPERTS, 64, 1)
    settings = {"quant_method": "mxfp4"}
    quantised.save(tmp_path / "expert", {**both, **down}, settings, model_type="gpt_oss")
    want = {}
    for number in range(EXPERTS):
        want[f"{root}.{number}.gate_proj.weight"] = first[number, :, 0::2].T
        want[f"{root}.{number}.up_proj.weight"] = first[number, :, 1::2].T
        want[f"{root}.{number}.down_proj.weight"] = second[number].T
    base = {name: torch.zeros(value.shape).bfloat16() for name, value in want.items()}
    quantised.save(tmp_path / "base", base, model_type="gpt_oss")
    output = {"dtype": "float32"}
    got = merged(tmp_path / "base", tmp_path / "expert", tmp_path / "out", output=output)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert np.array_equal(got[name].numpy(), value.astype(np.float32))


def test_a_stage_of_another_layout_is_read_as_a_model_of_it_is(tmp_path: Path) -> None:
    for name, layout, seed in (
        ("base", "single", 1),
        ("fused", "gpt_oss", 2),
        ("other", "gpt_oss", 3),
        ("same", "single", 2),
        ("same_other", "single", 3),
    ):
        write(tmp_path / name, layout, seed, bias=True)

    def run(first: str, second: str, out: str) -> Weights:
        mean = {
            "base": str(tmp_path / first),
            "experts": {"b": str(tmp_path / second)},
            "steps": [{"linear": {"weights": {"base": 1, "b": 1}}}],
        }
        said = {
            "base": str(tmp_path / "base"),
            "experts": {"e": {"model": "@mean", "weight": 0.5}},
            "steps": ["task_arithmetic"],
            "stages": {"mean": mean},
        }
        api.run(said, tmp_path / out)
        return read_weights(tmp_path / out)

    got, want = run("fused", "other", "out"), run("same", "same_other", "want")
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("shape", [(300, 2, 700), (300, 700, 2), (2, 300, 700), (513, 5), (1, 1)])
def test_a_copy_in_order_is_the_array(shape: tuple[int, ...]) -> None:
    entries = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
    for axes in itertools.permutations(range(len(shape))):
        copy = in_order(entries.transpose(axes))
        assert copy.flags.c_contiguous
        assert np.array_equal(copy, entries.transpose(axes))


class Counting:
    """A supply of fp32 entries that count from 0 on."""

    dtype = "F32"
    is_delta = False

    def __init__(self) -> None:
        self.fills = 0

    def offset(self, first: int) -> int:
        return 64 + first

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        self.fills += 1
        out.view(np.float32)[:] = np.arange(first, first + count)


def test_tiles_that_cross_blocks() -> None:
    supply = Counting()
    whole = Turned(Pieced([(Piece("a", 0, 24), supply)]), Turn((3, 2, 2), (2, 1, 0)))
    want = np.arange(24).reshape(2, 3, 2, 2).transpose(0, 3, 2, 1).reshape(-1).tolist()
    assert whole.offset(5) == 0
    for first in range(24):
        for count in range(1, 25 - first):
            out = np.zeros(4 * count, np.uint8)
            whole.fill(first, count, out)
            assert out.view(np.float32).tolist() == want[first : first + count]
    supply.fills = 0
    fresh = Turned(Pieced([(Piece("a", 0, 24), supply)]), Turn((3, 2, 2), (2, 1, 0)))
    for first in range(0, 24, 5):
        fresh.fill(first, min(5, 24 - first), np.zeros(4 * min(5, 24 - first), np.uint8))
    assert supply.fills == 2
