"""Adapters of single experts on fused bases, and of fused experts on bases that keep them apart."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergekit_lite
from mergekit_lite.errors import RecipeError
from mergekit_lite.plan.types import Plan
from tests.checkpoints import read_weights
from tests.engine.test_adapters import adapt, by_peft, merged, mixtral, qwen_moe
from tests.engine.test_expert_forms import EXPERTS, INNER, WIDTH, write

RANK, ALPHA = 3, 6.0
SHAPES = {"gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)}
QWEN = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}
Pairs = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_adapter(folder: Path, shapes: dict[str, tuple[int, int]], **config: Any) -> Pairs:
    """Write an adapter of modules with these (out, in) shapes; return its factors by module."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(5)
    pairs: Pairs = {}
    stored = {}
    for module, (tall, wide) in shapes.items():
        a = torch.randn(RANK, wide, generator=generator)
        b = torch.randn(tall, RANK, generator=generator)
        pairs[module] = (b, a)
        stored[f"base_model.model.{module}.lora_A.weight"] = a
        stored[f"base_model.model.{module}.lora_B.weight"] = b
    save_file(stored, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["w"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return pairs


def modules(names: dict[str, str], root: str, *left_out: str) -> dict[str, tuple[int, int]]:
    return {
        f"model.layers.{layer}.{root}.experts.{expert}.{name}": SHAPES[part]
        for layer in range(2)
        for expert in range(EXPERTS)
        for part, name in names.items()
        if f"{layer}.{expert}.{part}" not in left_out
    }


def deltas(layout: str, folder: Path, pairs: Pairs) -> dict[str, Tensor]:
    """What the factors add to a model of a layout, put together expert by expert."""
    before = {name: value.float() for name, value in read_weights(folder).items()}
    added = {name: torch.zeros_like(value) for name, value in before.items()}
    for module, (b, a) in pairs.items():
        delta = ALPHA / RANK * (b @ a)
        head, _, tail = module.partition(".experts.")
        number, name = tail.split(".")
        owner = head.rpartition(".")[0]
        expert = int(number)
        second = name in ("up_proj", "w3")
        whole = next(
            value
            for key, value in added.items()
            if key.startswith(f"{owner}.")
            and key.rpartition(".")[2 if "linear" not in key else 0].endswith(
                ("down_proj", "output_linear") if name in ("down_proj", "w2") else
                ("gate_up_proj", "input_linear")
            )
        )[expert]  # fmt: skip
        if name in ("down_proj", "w2"):
            whole += delta.T if layout in ("llama4", "gpt_oss") else delta
        elif layout == "gpt_oss":
            whole[:, int(second) :: 2] += delta.T
        elif layout == "llama4":
            whole[:, INNER * second : INNER * (second + 1)] += delta.T
        else:
            whole[INNER * second : INNER * (second + 1)] += delta
    return added


@pytest.mark.parametrize("layout", ["halves", "granite", "llama4", "gpt_oss"])
@pytest.mark.parametrize(
    ("names", "root"), [(QWEN, "mlp"), (MIXTRAL, "block_sparse_moe")], ids=["qwen", "mixtral"]
)
@pytest.mark.parametrize("left_out", [(), ("0.1.gate", "0.1.up", "0.1.down", "1.0.up", "1.2.gate")])
def test_single_experts_on_a_fused_base(
    tmp_path: Path, layout: str, names: dict[str, str], root: str, left_out: tuple[str, ...]
) -> None:
    write(tmp_path / "base", layout, 1, bias=False)
    pairs = write_adapter(tmp_path / "lora", modules(names, root, *left_out))
    got = merged(tmp_path, tmp_path / "base", tmp_path / "lora", output={"dtype": "float32"})
    before = read_weights(tmp_path / "base")
    for name, delta in deltas(layout, tmp_path / "base", pairs).items():
        want = before[name].float() + delta
        torch.testing.assert_close(got[name].reshape(want.shape), want, rtol=1e-6, atol=1e-5)
        untouched = delta == 0
        assert torch.equal(got[name][untouched], want[untouched])


def test_scales_of_their_own_and_the_same_bytes_whatever_the_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "base", "gpt_oss", 1, bias=False)
    pattern = {r"experts\.1\.up_proj": 12.0}
    pairs = write_adapter(tmp_path / "lora", modules(QWEN, "mlp"), alpha_pattern=pattern)
    got = merged(tmp_path, tmp_path / "base", tmp_path / "lora", output={"dtype": "float32"})
    name = "model.layers.0.mlp.experts.gate_up_proj"
    b, a = pairs["model.layers.0.mlp.experts.1.up_proj"]
    want = read_weights(tmp_path / "base")[name][1, :, 1::2].float() + 4 * (b @ a).T
    torch.testing.assert_close(got[name][1, :, 1::2], want)
    monkeypatch.setattr("mergekit_lite.engine.row.LEAST_TILE", 7)
    monkeypatch.setattr("mergekit_lite.engine.row.tile_and_block", lambda tile, width: (7, 2048))
    (tmp_path / "small").mkdir()
    small = merged(
        tmp_path / "small", tmp_path / "base", tmp_path / "lora", output={"dtype": "float32"}
    )
    assert all(torch.equal(got[key], small[key]) for key in got)


def test_the_router_of_a_layer_under_another_name(tmp_path: Path) -> None:
    write(tmp_path / "base", "halves", 1, bias=False)
    shapes = {"model.layers.1.block_sparse_moe.gate": (EXPERTS, WIDTH)}
    pairs = write_adapter(tmp_path / "lora", shapes)
    got = merged(tmp_path, tmp_path / "base", tmp_path / "lora", output={"dtype": "float32"})
    ((b, a),) = pairs.values()
    name = "model.layers.1.mlp.router.weight"
    want = read_weights(tmp_path / "base")[name].float() + 2 * b @ a
    torch.testing.assert_close(got[name], want)


def test_names_of_another_family_on_a_base_that_keeps_experts_apart(tmp_path: Path) -> None:
    write(tmp_path / "base", "single", 1, bias=False)
    pairs = write_adapter(tmp_path / "lora", modules(MIXTRAL, "block_sparse_moe"))
    got = merged(tmp_path, tmp_path / "base", tmp_path / "lora", output={"dtype": "float32"})
    b, a = pairs["model.layers.1.block_sparse_moe.experts.2.w3"]
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    torch.testing.assert_close(got[name], read_weights(tmp_path / "base")[name].float() + 2 * b @ a)


FAMILIES = {
    "qwen": (qwen_moe, "mlp", QWEN, ()),
    "mixtral": (mixtral, "block_sparse_moe", MIXTRAL, ("gate",)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_what_peft_makes_of_single_experts(tmp_path: Path, family: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    make, module, names, beside = FAMILIES[family]
    base = make(tmp_path / "base", "float32")
    sizes = {"gate": (12, 16), "up": (12, 16), "down": (16, 12)}
    shapes = {
        f"model.layers.{layer}.{module}.experts.{expert}.{names[part]}": shape
        for layer in range(2)
        for expert in range(3)
        for part, shape in sizes.items()
    } | {f"model.layers.{layer}.self_attn.q_proj": (16, 16) for layer in range(2)}
    for one in beside:
        shapes |= {f"model.layers.{layer}.{module}.{one}": (3, 16) for layer in range(2)}
    targets = [*names.values(), *beside, "q_proj"]
    write_adapter(tmp_path / "lora", shapes, target_modules=targets)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    wanted = by_peft(PeftModel.from_pretrained(model, tmp_path / "lora"), tmp_path / "peft")
    single = merged(tmp_path, base, tmp_path / "lora")
    assert single.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(single[name], value, rtol=1e-5, atol=2e-6)
    (tmp_path / "f").mkdir()
    fused = merged(tmp_path / "f", tmp_path / "fused", tmp_path / "lora")
    for layer in range(2):
        root, home = f"model.layers.{layer}.{module}", f"model.layers.{layer}.mlp"
        for expert in range(3):
            of = {part: single[f"{root}.experts.{expert}.{names[part]}.weight"] for part in sizes}
            both = torch.cat([of["gate"], of["up"]])
            assert torch.equal(fused[f"{home}.experts.gate_up_proj"][expert], both)
            assert torch.equal(fused[f"{home}.experts.down_proj"][expert], of["down"])
        assert torch.equal(fused[f"{home}.gate.weight"], single[f"{root}.gate.weight"])


def test_bare_parameters_of_granite_equal_peft(tmp_path: Path) -> None:
    from tests.export.test_routed import granite, made

    base = made(tmp_path / "base", granite(), 1)
    targets = [f"block_sparse_moe.experts.{p}_proj" for p in ("gate_up", "down")]
    model = adapt(
        base, tmp_path / "lora", r=2, target_modules=["q_proj"], target_parameters=targets
    )
    got = merged(tmp_path, base, tmp_path / "lora")
    wanted = by_peft(model, tmp_path / "peft")
    before = load_file(base / "model.safetensors")
    changed = [name for name in got if not torch.equal(got[name], before[name])]
    assert sum("_linear" in name for name in changed) == 6
    for name in got:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("model_type", ["", "gpt_oss"])
def test_bare_parameters_on_a_base_that_keeps_experts_apart(
    tmp_path: Path, turned: bool, model_type: str
) -> None:
    """Factors of all experts at once; those of earlier PEFT have their sides exchanged."""
    write(tmp_path / "base", "single", 1, bias=False, model_type=model_type)
    generator = torch.Generator().manual_seed(9)
    module = "base_model.model.model.layers.0.mlp.experts"
    outer, inner = (WIDTH, 2 * INNER) if turned else (2 * INNER, WIDTH)
    a = torch.randn(RANK * EXPERTS, inner, generator=generator)
    b = torch.randn(outer, RANK * EXPERTS, generator=generator)
    (tmp_path / "lora").mkdir()
    stored = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    save_file(stored, tmp_path / "lora" / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA,
        "target_parameters": ["mlp.experts.gate_up_proj"],
    }  # fmt: skip
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    got = merged(tmp_path, tmp_path / "base", tmp_path / "lora", output={"dtype": "float32"})
    before = read_weights(tmp_path / "base")
    for expert in range(EXPERTS):
        # PEFT: A is stacked expert by expert, B rank by rank.
        whole = 2 * b[:, expert::EXPERTS] @ a[expert * RANK : (expert + 1) * RANK]
        whole = whole.T if turned else whole
        halves = (whole[0::2], whole[1::2]) if model_type else whole.chunk(2)
        for part, delta in zip(("gate_proj", "up_proj"), halves, strict=True):
            name = f"model.layers.0.mlp.experts.{expert}.{part}.weight"
            torch.testing.assert_close(got[name], before[name].float() + delta)


def test_a_plan_with_shares_travels_and_is_explained(tmp_path: Path) -> None:
    from mergekit_lite.plan.build import prepare
    from mergekit_lite.plan.explain import explain

    write(tmp_path / "base", "halves", 1, bias=False)
    write_adapter(tmp_path / "lora", modules(QWEN, "mlp"))
    said = {
        "base": str(tmp_path / "base"), "experts": {"one": {"lora": str(tmp_path / "lora")}},
        "steps": ["task_arithmetic"],
    }  # fmt: skip
    recipe = mergekit_lite.load(said)
    plan, models = prepare(recipe)
    assert Plan.from_json(plan.to_json()).jobs == plan.jobs
    told = explain(plan, recipe, "model.layers.0.mlp.experts.down_proj", models)
    parts = {read["part"] for read in told["reads"]}
    assert "lora B of expert 2, scale 2" in parts
    assert any("routed layers that the base stores in another layout" in w for w in plan.warnings)


@pytest.mark.parametrize(
    ("shapes", "config", "told"),
    [
        (
            {"model.layers.0.mlp.experts.0.gate_proj": (INNER, WIDTH + 1)},
            {},
            "of an expert that is",
        ),
        ({"model.layers.0.mlp.experts.3.gate_proj": (INNER, WIDTH)}, {}, "of an expert that is"),
        (
            {"model.layers.0.mlp.experts.0.gate_proj": (INNER, WIDTH)},
            {"fan_in_fan_out": True},
            "of single experts, which the base stores fused",
        ),
    ],
)
def test_what_has_no_place_in_the_base_is_told(
    tmp_path: Path, shapes: dict[str, tuple[int, int]], config: dict[str, Any], told: str
) -> None:
    write(tmp_path / "base", "halves", 1, bias=False)
    write_adapter(tmp_path / "lora", shapes, **config)
    with pytest.raises(RecipeError, match=told):
        merged(tmp_path, tmp_path / "base", tmp_path / "lora")


def test_dora_of_single_experts_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "base", "halves", 1, bias=False)
    shapes = modules(QWEN, "mlp")
    write_adapter(tmp_path / "lora", shapes, use_dora=True)
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    for module, (tall, _) in shapes.items():
        stored[f"base_model.model.{module}.lora_magnitude_vector"] = torch.ones(tall)
    save_file(stored, tmp_path / "lora" / "adapter_model.safetensors")
    with pytest.raises(RecipeError, match="holds DoRA of single experts") as caught:
        merged(tmp_path, tmp_path / "base", tmp_path / "lora")
    assert len(caught.value.problems) == 1


def test_a_base_of_an_unknown_layout_is_told(tmp_path: Path) -> None:
    write(tmp_path / "base", "gpt_oss", 1, bias=False)
    (tmp_path / "base" / "config.json").unlink()
    write_adapter(tmp_path / "lora", modules(QWEN, "mlp"))
    with pytest.raises(RecipeError, match="nothing tells how the base stores them"):
        merged(tmp_path, tmp_path / "base", tmp_path / "lora")
