"""Routed models as transformers writes them, in both layouts, merged and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite import api
from tests.checkpoints import read_weights, write_weights

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 32,
}  # fmt: skip


def qwen() -> Any:
    return transformers.Qwen3MoeConfig(
        **SIZES, head_dim=8, moe_intermediate_size=12, num_experts=4, num_experts_per_tok=2,
        mlp_only_layers=[1], norm_topk_prob=True,
    )  # fmt: skip


def mixtral() -> Any:
    return transformers.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)


def made(folder: Path, config: Any, seed: int, *, fused: bool = False) -> Path:
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder, save_original_format=not fused)
    return folder


def loaded(folder: Path) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.isfinite(model(torch.arange(6)[None]).logits).all()
    return model


@pytest.mark.parametrize("config", [qwen, mixtral])
@pytest.mark.parametrize("fused_base", [False, True])
def test_one_of_each_layout(tmp_path: Path, config: Any, fused_base: bool) -> None:
    base = made(tmp_path / "base", config(), 1, fused=fused_base)
    other = made(tmp_path / "other", config(), 2, fused=not fused_base)
    same = made(tmp_path / "same", config(), 2, fused=fused_base)
    assert set(read_weights(base)) == set(read_weights(same))
    results = []
    for expert in (other, same):
        steps = [{"linear": {"weights": {"base": 1, "e": 1}}}]
        recipe = {"base": str(base), "experts": {"e": str(expert)}, "steps": steps}
        api.run(recipe, tmp_path / f"out-{expert.name}")
        results.append(read_weights(tmp_path / f"out-{expert.name}"))
    mixed, want = results
    assert set(mixed) == set(read_weights(base))
    assert all(torch.equal(mixed[name], want[name]) for name in want)
    loaded(tmp_path / "out-other")


def test_another_depth_renumbers_the_dense_layers(tmp_path: Path) -> None:
    base = made(tmp_path / "base", qwen(), 1)
    recipe = {"base": str(base), "slices": [{"take": "base", "layers": "0-2,1-2"}]}
    api.run(recipe, tmp_path / "out")
    config = loaded(tmp_path / "out").config
    assert (config.num_hidden_layers, config.mlp_only_layers) == (5, [1, 3])


def granite() -> Any:
    return transformers.GraniteMoeConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)


def gpt_oss() -> Any:
    return transformers.GptOssConfig(
        **SIZES | {"intermediate_size": 12}, head_dim=8, num_local_experts=3,
        num_experts_per_tok=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def llama4() -> Any:
    return transformers.Llama4TextConfig(
        **SIZES | {"intermediate_size": 12}, intermediate_size_mlp=12, head_dim=8,
        num_local_experts=3, num_experts_per_tok=1, interleave_moe_layer_step=2,
        attention_chunk_size=16,
    )  # fmt: skip


@pytest.mark.parametrize("fused_base", [False, True])
def test_granite_in_both_of_its_names(tmp_path: Path, fused_base: bool) -> None:
    base = made(tmp_path / "base", granite(), 1, fused=fused_base)
    other = made(tmp_path / "other", granite(), 2, fused=not fused_base)
    assert any("input_linear" in name for name in read_weights(other)) == fused_base
    recipe = {"base": str(base), "experts": {"e": str(other)}, "steps": [{"take": {"source": "e"}}]}
    api.run(recipe, tmp_path / "out")
    assert set(read_weights(tmp_path / "out")) == set(read_weights(base))
    tokens = torch.arange(6)[None]
    assert torch.equal(loaded(tmp_path / "out")(tokens).logits, loaded(other)(tokens).logits)


def apart(folder: Path, module: str, *, by_turns: bool) -> None:
    """Store each expert of a layer's fused tensors by itself, as a linear layer would be."""
    weights = read_weights(folder)
    parts = {"gate_proj": 0, "up_proj": 1}
    for name in [name for name in weights if f".{module}.experts." in name]:
        root, _, leaf = name.rpartition(".")
        fused = weights.pop(name)
        kind = "bias" if leaf.endswith("_bias") else "weight"
        for expert, value in enumerate(fused):
            if leaf.startswith("down_proj"):
                weights[f"{root}.{expert}.down_proj.{kind}"] = value.T if value.dim() > 1 else value
                continue
            for part, number in parts.items():
                half = value.shape[-1] // 2
                cut = value[..., number::2] if by_turns else value[..., number * half :][..., :half]
                weights[f"{root}.{expert}.{part}.{kind}"] = cut.T if cut.dim() > 1 else cut
    write_weights(folder, {name: value.contiguous() for name, value in weights.items()})


def through(weights: dict[str, torch.Tensor], root: str, x: torch.Tensor, act: Any) -> torch.Tensor:
    """What one expert that is stored by itself makes of its input."""

    def linear(part: str, value: torch.Tensor) -> torch.Tensor:
        bias = weights.get(f"{root}.{part}.bias")
        return torch.nn.functional.linear(value, weights[f"{root}.{part}.weight"], bias)

    return linear("down_proj", act(linear("gate_proj", x), linear("up_proj", x)))


@pytest.mark.parametrize("family", ["gpt_oss", "llama4"])
def test_transposed_experts_compute_what_their_class_does(tmp_path: Path, family: str) -> None:
    config, module = {"gpt_oss": (gpt_oss, "mlp"), "llama4": (llama4, "feed_forward")}[family]
    fused = made(tmp_path / "fused", config(), 1)
    single = made(tmp_path / "single", config(), 2)
    apart(single, module, by_turns=family == "gpt_oss")
    for out, base, expert in (("one-by-one", single, fused), ("back", fused, single)):
        recipe = {
            "base": str(base), "experts": {"e": str(expert)}, "steps": [{"take": {"source": "e"}}],
        }  # fmt: skip
        api.run(recipe, tmp_path / out)
    # The class's own experts, against a plain computation on what was read out of them.
    model = loaded(fused)
    weights = read_weights(tmp_path / "one-by-one")
    experts = getattr(model.model.layers[1], module).experts
    x = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(3))
    for number in range(3):
        root = f"model.layers.1.{module}.experts.{number}"
        if family == "gpt_oss":
            got = through(
                weights, root, x[number], lambda g, u: g * torch.sigmoid(1.702 * g) * (u + 1)
            )
            only = torch.full((4, 1), number)
            want = experts(x[number], only, torch.ones(4, 1))
        else:
            got = through(weights, root, x[number], lambda g, u: u * torch.nn.functional.silu(g))
            want = experts(x.reshape(12, 16)).reshape(3, 4, 16)[number]
        torch.testing.assert_close(got, want)
    # And the way back gives what the class saved.
    written = made(tmp_path / "again", config(), 2)
    tokens = torch.arange(6)[None]
    assert torch.equal(loaded(tmp_path / "back")(tokens).logits, loaded(written)(tokens).logits)
