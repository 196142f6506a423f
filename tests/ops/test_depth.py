"""Presets that decide by layer and by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.interpolate import BSpline

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops import get
from mergekit_lite.ops._place import Place, random_key
from mergekit_lite.ops.presets.bspline_blend import curve
from mergekit_lite.recipe import load

ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
MLP = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
NORMS = ["input_layernorm", "post_attention_layernorm"]
LAYERS = 8


def reset(module: str, layer: int | None, seed: int = 0, suffix: str = ".weight") -> bool:
    key = random_key(seed, "half_reset", "", "")
    name = f"model.layers.{layer}.{module}{suffix}"
    [(op, params)] = get("half_reset").function(
        place=Place(name, layer=layer, layers=LAYERS, key=key), source="a"
    )
    assert op == "take"
    return bool(params["source"] == "base")


@pytest.mark.parametrize("seed", range(5))
def test_half_of_each_kind_is_reset(seed: int) -> None:
    for layer in range(LAYERS):
        assert sum(reset(module, layer, seed) for module in ATTENTION) == 2
        assert sum(reset(module, layer, seed) for module in NORMS) == 1
    mlp = [sum(reset(module, layer, seed) for module in MLP) for layer in range(LAYERS)]
    assert all(a + b == 3 for a, b in zip(mlp[::2], mlp[1::2], strict=True))
    assert set(mlp) == {1, 2}


def test_every_module_is_reset_somewhere_and_a_bias_goes_with_its_weight() -> None:
    for module in [*ATTENTION, *MLP, *NORMS, "attn.c_attn", "mlp.c_fc"]:
        found = {reset(module, layer, seed) for layer in range(LAYERS) for seed in range(4)}
        assert found == {True, False}, module
        for layer in range(LAYERS):
            assert reset(module, layer) == reset(module, layer, suffix=".bias")


def test_what_is_outside_the_layers_stays_fine_tuned() -> None:
    assert not any(reset(name, None) for name in ("embed_tokens", "norm", "lm_head"))


def test_another_seed_resets_another_half() -> None:
    draws = {
        tuple(reset(module, layer, seed) for layer in range(LAYERS) for module in ATTENTION)
        for seed in range(4)
    }
    assert len(draws) == 4


@pytest.mark.parametrize(("points", "degree"), [(4, 3), (16, 3), (5, 1), (3, 2), (9, 5)])
def test_the_curve_is_a_clamped_b_spline(points: int, degree: int) -> None:
    values = np.random.default_rng(points).random(points)
    inner = np.linspace(0, 1, points - degree + 1)
    knots = np.concatenate([np.zeros(degree), inner, np.ones(degree)])
    spline = BSpline(knots, values, degree)
    for depth in np.linspace(0, 1, 31):
        assert curve(values.tolist(), degree, float(depth)) == pytest.approx(float(spline(depth)))
    assert curve(values.tolist(), degree, 0.0) == values[0]
    assert curve(values.tolist(), degree, 1.0) == values[-1]


def blend(**params: Any) -> Any:
    step = {"bspline_blend": {"source": "math", **params}}
    return load({"base": "./b", "experts": {"math": "./m"}, "steps": [step]}).steps[0].params


def test_a_list_of_numbers_in_a_recipe() -> None:
    assert blend(control_points=[0, 0.1, 0.5, 1])["control_points"] == [0, 0.1, 0.5, 1]
    with pytest.raises(RecipeError, match="3 control points make no curve of degree 3"):
        blend(control_points=[0, 0.5, 1])
    with pytest.raises(RecipeError, match="must be a list of numbers"):
        blend(control_points=0.5)
    with pytest.raises(RecipeError, match="allowed is 0 <= control_points <= 1"):
        blend(control_points=[0, 0.5, 1, 2])
