from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_lite.checkpoint import Adapter, TensorInfo, read_adapter
from mergekit_lite.checkpoint.lora_place import on_base
from mergekit_lite.errors import DataError, RecipeError, SourceError
from tests.checkpoints import read_weights, tiny_llama, write_json

PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/base"}


def write_adapter(
    folder: Path, tensors: dict[str, tuple[int, ...]] | None = None, **config: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    write_json(folder / "adapter_config.json", {**CONFIG, **config})
    shapes = tensors or {f"{PREFIX}.lora_A.weight": (4, 32), f"{PREFIX}.lora_B.weight": (16, 4)}
    values = {name: torch.ones(shape) for name, shape in shapes.items()}
    save_file(values, folder / "adapter_model.safetensors")
    return folder


def apply_adapter(base: dict[str, torch.Tensor], adapter: Adapter, folder: Path) -> None:
    """Merge an adapter as its description says, in place."""
    stored = load_file(folder / "adapter_model.safetensors")
    for name, source in adapter.replaced.items():
        base[name] = stored[source]
    for name, factors in adapter.factors.items():
        delta = factors.scale * (stored[factors.b] @ stored[factors.a])
        assert base[name].shape == adapter.shape(name)
        base[name] = base[name] + (delta.T if factors.transpose else delta)


def train(model: Any, **config: Any) -> Any:
    """Wrap a model in LoRA and give every trainable weight a value that shows."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, LoraConfig(**config))
    torch.manual_seed(7)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return wrapped


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj"]},
        {
            "r": 4,
            "target_modules": ["q_proj", "k_proj", "up_proj"],
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6},
            "alpha_pattern": {"k_proj": 5, "1.self_attn.q_proj": 1, "proj": 3},
        },
        {
            "r": 8,
            "use_rslora": True,
            "rank_pattern": {"^model.layers.0.self_attn.q_proj": 3},
            "target_modules": "all-linear",
        },
        {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
        {"r": 4, "target_modules": ["embed_tokens", "o_proj"]},
    ],
)
def test_equals_merging_by_peft(tmp_path: Path, config: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_llama(tmp_path / "base", dtype="float32", tied=False)
    model = train(AutoModelForCausalLM.from_pretrained(folder), **config)
    model.save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    merged = read_weights(folder)
    adapter = read_adapter(tmp_path / "lora")
    assert adapter.base_model == str(folder)
    apply_adapter(merged, adapter, tmp_path / "lora")
    changed = {*adapter.factors, *adapter.replaced}
    base = read_weights(folder)
    for name, value in model.merge_and_unload().state_dict().items():
        assert torch.equal(base[name], value) == (name not in changed)
        torch.testing.assert_close(merged[name], value, rtol=1e-5, atol=1e-6)


def test_equals_merging_by_peft_where_weights_are_stored_transposed(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=8)
    base = GPT2LMHeadModel(shape)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = train(base, r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    assert adapter.factors["transformer.h.0.attn.c_attn.weight"].transpose
    apply_adapter(before, adapter, tmp_path)
    for name, value in model.merge_and_unload().state_dict().items():
        torch.testing.assert_close(before[name], value, rtol=1e-5, atol=1e-6)


def test_factors_are_named_and_scaled(tmp_path: Path) -> None:
    adapter = read_adapter(write_adapter(tmp_path, use_rslora=True))
    factors = adapter.factors["model.layers.0.self_attn.q_proj.weight"]
    assert (factors.a, factors.b) == (f"{PREFIX}.lora_A.weight", f"{PREFIX}.lora_B.weight")
    assert factors.scale == 4.0
    assert not factors.transpose
    assert adapter.shape("model.layers.0.self_attn.q_proj.weight") == (16, 32)
    assert adapter.base_model == "org/base"
    assert adapter.header.tensors[factors.a].shape == (4, 32)


def test_names_that_still_carry_the_adapters_name_are_understood(tmp_path: Path) -> None:
    adapter = read_adapter(
        write_adapter(
            tmp_path,
            {
                f"{PREFIX}.lora_A.default.weight": (4, 32),
                f"{PREFIX}.lora_B.default.weight": (16, 4),
                "base_model.model.embed.lora_embedding_A.default": (4, 20),
                "base_model.model.embed.lora_embedding_B.default": (32, 4),
                "base_model.model.lm_head.modules_to_save.default.weight": (20, 32),
                "base_model.model.score.bias": (2,),
            },
        )
    )
    assert set(adapter.factors) == {"model.layers.0.self_attn.q_proj.weight", "embed.weight"}
    assert adapter.shape("embed.weight") == (20, 32)
    assert set(adapter.replaced) == {"lm_head.weight", "score.bias"}
    assert adapter.shape("lm_head.weight") == (20, 32)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        *[
            ({"peft_type": kind}, f"type {kind}")
            for kind in (
                "IA3",
                "VERA",
                "LOHA",
                "LOKR",
                "OFT",
                "BOFT",
                "ADALORA",
                "TRAINABLE_TOKENS",
            )
        ],
        ({"use_qalora": True}, "QALoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialised by pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "initialised by olora"),
        ({"layer_replication": [[0, 1]]}, "layer replication"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        read_adapter(write_adapter(tmp_path, **config))
    assert message in str(caught.value)
    assert "merge_and_unload" in str(caught.value)


def test_all_reasons_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read_adapter(write_adapter(tmp_path, use_qalora=True, init_lora_weights="pissa"))
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"lora_A.weight": (4, 32)}, DataError, "has no partner"),
        ({"lora_A.weight": (2, 32), "lora_B.weight": (16, 2)}, DataError, "says rank 4"),
        ({"lora_A.weight": (4, 32), "lora_B.weight": (16, 3)}, DataError, "says rank 4"),
        (
            {"lora_A.weight": (4, 3, 1, 1), "lora_B.weight": (8, 2, 1, 1)},
            RecipeError,
            "LoRA on a grouped convolution",
        ),
        ({"lora_A.weight": (4, 32), "lora_B.weight": (16, 4, 1)}, DataError, "has factors"),
        ({"lora_magnitude_vector": (4,)}, DataError, "has no partner"),
        ({"lora_magnitude_vector.weight": (4,)}, DataError, "has no partner"),
        ({"lora_diag.default": (4,)}, DataError, "has no partner"),
        ({"lora_router.default": (4,)}, RecipeError, "a LoRA variant"),
        (
            {"lora_A.weight": (4, 32), "lora_B.weight": (16, 4), "lora_diag": (4,)},
            DataError,
            "does not say KaSA",
        ),
        (
            {"lora_A.weight": (4, 32), "lora_B.weight": (16, 4), "lora_magnitude_vector": (16,)},
            DataError,
            "does not say DoRA",
        ),
        ({"token_adapter.trainable_tokens_delta": (2, 4)}, DataError, "names 0 tokens"),
        ({"something": (4,)}, RecipeError, "no LoRA factor"),
    ],
)
def test_tensors_that_do_not_make_a_delta(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], error: type[Exception], message: str
) -> None:
    shapes = {f"{PREFIX}.{name}": shape for name, shape in tensors.items()}
    with pytest.raises(error) as caught:
        read_adapter(write_adapter(tmp_path, shapes))
    assert message in str(caught.value)
    assert PREFIX.removeprefix("base_model.model.") in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 0}, "`r` is 0"),
        ({"r": "8"}, "`r` is '8'"),
        ({"lora_alpha": None}, "`lora_alpha` is None"),
        ({"rank_pattern": ["q_proj"]}, "`rank_pattern` is not a map"),
        ({"rank_pattern": {"q_proj": 0}}, "rank below 1"),
        ({"alpha_pattern": {"q_proj": "x"}}, "`alpha_pattern` is not a map of numbers"),
        ({"alpha_pattern": {"(": 1}}, "'(' is not a regular expression"),
        ({"target_parameters": "experts.up"}, "`target_parameters` is not a list"),
        ({"trainable_token_indices": [-1]}, "`trainable_token_indices` is not a list"),
        ({"trainable_token_indices": {"wte": 3}}, "`trainable_token_indices` is not a list"),
    ],
)
def test_a_malformed_configuration_is_damage(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_adapter(write_adapter(tmp_path, **config))
    assert message in str(caught.value)


def test_incomplete_adapters(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no adapter_config\.json"):
        read_adapter(tmp_path)
    write_json(tmp_path / "adapter_config.json", CONFIG)
    with pytest.raises(SourceError, match=r"has no adapter_model\.safetensors"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(RecipeError, match="as a pickle"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{]")
    with pytest.raises(DataError, match="valid JSON"):
        read_adapter(tmp_path)


def test_patterns_win_over_the_rank_and_alpha_of_all(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, r=2, rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 99})
    factors = read_adapter(folder).factors["model.layers.0.self_attn.q_proj.weight"]
    assert factors.scale == 2.0


def test_dora_wants_one_length_for_every_output(tmp_path: Path) -> None:
    shapes = {f"{PREFIX}.lora_A.weight": (4, 32), f"{PREFIX}.lora_B.weight": (16, 4)}
    magnitude = f"{PREFIX}.lora_magnitude_vector"
    with pytest.raises(DataError, match="has none"):
        read_adapter(write_adapter(tmp_path, shapes, use_dora=True))
    with pytest.raises(DataError, match=r"has shape \(15,\)"):
        read_adapter(write_adapter(tmp_path, {**shapes, magnitude: (15,)}, use_dora=True))
    adapter = read_adapter(write_adapter(tmp_path, {**shapes, magnitude: (16,)}, use_dora=True))
    factors = adapter.factors["model.layers.0.self_attn.q_proj.weight"]
    assert factors.magnitude == magnitude
    assert not factors.is_delta


def test_biases_convolutions_and_copies_of_the_base(tmp_path: Path) -> None:
    shapes = {
        f"{PREFIX}.lora_A.weight": (4, 32),
        f"{PREFIX}.lora_B.weight": (16, 4),
        f"{PREFIX}.lora_B.bias": (16,),
        f"{PREFIX}.base_layer.weight": (16, 32),
        f"{PREFIX}.base_layer.bias": (16,),
        "base_model.model.conv.lora_A.weight": (4, 3, 5, 5),
        "base_model.model.conv.lora_B.weight": (8, 4, 1, 1),
        "base_model.model.norm.bias": (32,),
    }
    adapter = read_adapter(write_adapter(tmp_path, shapes, lora_bias=True, bias="all"))
    q_proj = "model.layers.0.self_attn.q_proj"
    assert adapter.factors[f"{q_proj}.weight"].under == f"{PREFIX}.base_layer.weight"
    assert adapter.factors[f"{q_proj}.bias"].scale == 2.0
    assert adapter.shape(f"{q_proj}.bias") == (16,)
    assert adapter.shape("conv.weight") == (8, 3, 5, 5)
    assert adapter.replaced["norm.bias"] == "base_model.model.norm.bias"


EXPERTS = "base_model.model.model.layers.0.mlp.experts"


def fused(folder: Path, **shapes: tuple[int, ...]) -> Adapter:
    """Write an adapter of three fused experts of rank 2."""
    tensors = {f"{EXPERTS}.{name.replace('__', '.')}.weight": s for name, s in shapes.items()}
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return read_adapter(write_adapter(folder, tensors, r=2, target_parameters=targets))


def infos(**shapes: tuple[int, ...]) -> dict[str, TensorInfo]:
    home = "model.layers.0.mlp.experts"
    return {f"{home}.{n}": TensorInfo(f"{home}.{n}", "F32", s, "f", 0) for n, s in shapes.items()}


def test_factors_of_bare_parameters_find_theirs_by_shape(tmp_path: Path) -> None:
    adapter = fused(
        tmp_path,
        lora_A=(6, 5),
        lora_B=(8, 6),
        base_layer__lora_A=(6, 8),
        base_layer__lora_B=(10, 6),
    )
    assert not adapter.factors
    placed = on_base(adapter, infos(gate_up_proj=(3, 10, 8), down_proj=(3, 8, 5)))
    up = placed.factors["model.layers.0.mlp.experts.gate_up_proj"]
    down = placed.factors["model.layers.0.mlp.experts.down_proj"]
    assert (up.stack, up.transpose, up.scale) == (3, False, 4.0)
    assert up.a == f"{EXPERTS}.base_layer.lora_A.weight"
    assert down.a == f"{EXPERTS}.lora_A.weight"
    assert placed.shape("model.layers.0.mlp.experts.down_proj") == (3, 8, 5)
    turned = on_base(adapter, infos(gate_up_proj=(3, 8, 10), down_proj=(3, 5, 8)))
    assert turned.factors["model.layers.0.mlp.experts.down_proj"].transpose


def test_a_square_parameter_lies_as_its_neighbour_or_as_its_family_does(tmp_path: Path) -> None:
    adapter = fused(
        tmp_path / "two",
        lora_A=(6, 8),
        lora_B=(8, 6),
        base_layer__lora_A=(6, 8),
        base_layer__lora_B=(10, 6),
    )
    name = "model.layers.0.mlp.experts.down_proj"
    placed = on_base(adapter, infos(gate_up_proj=(3, 8, 10), down_proj=(3, 8, 8)))
    assert placed.factors[name].transpose
    alone = fused(tmp_path / "one", lora_A=(6, 8), lora_B=(8, 6))
    base = infos(gate_up_proj=(3, 8, 10), down_proj=(3, 8, 8))
    assert not on_base(alone, base).factors[name].transpose
    assert on_base(alone, base, "gpt_oss").factors[name].transpose


def test_factors_that_fit_no_parameter_keep_a_name_that_the_base_lacks(tmp_path: Path) -> None:
    adapter = fused(tmp_path, lora_A=(6, 5), lora_B=(8, 6))
    for base in (
        {},
        infos(gate_up_proj=(4, 8, 5)),
        infos(down_proj=(3, 8, 5), gate_up_proj=(3, 8, 5)),
    ):
        placed = on_base(adapter, base)
        assert list(placed.factors) == ["model.layers.0.mlp.experts.down_proj|gate_up_proj"]


def test_each_expert_of_an_unfused_file_takes_its_part(tmp_path: Path) -> None:
    adapter = fused(tmp_path, lora_A=(6, 8), lora_B=(10, 6))
    names = {f"{e}.{part}.weight": (5, 8) for e in range(3) for part in ("gate_proj", "up_proj")}
    placed = on_base(adapter, infos(**names))
    assert len(placed.factors) == 6
    up = placed.factors["model.layers.0.mlp.experts.2.up_proj.weight"]
    assert (up.stack, up.expert, up.first) == (3, 2, 5)
    assert placed.shape("model.layers.0.mlp.experts.2.up_proj.weight") == (5, 8)
