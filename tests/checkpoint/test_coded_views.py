"""What a quantised checkpoint's headers say, and every way in which they can fail to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mergekit_lite.sources import Model, resolve
from tests import quantised as q

M = "model.layers.0.mlp.up_proj."
W = f"{M}weight"
CODES = torch.zeros(256, 128).to(torch.float8_e4m3fn)
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def model_of(folder: Path, tensors: dict[str, Tensor], settings: Any, **config: Any) -> Model:
    return resolve(str(q.save(folder, tensors, settings, **config)), relative_to=folder)


def fault(folder: Path, tensors: dict[str, Tensor], settings: Any) -> str:
    """Return the one thing that keeps a checkpoint from being read; its header stays as it is."""
    model = model_of(folder, tensors, settings)
    (problem,) = model.unreadable
    assert set(model.header.tensors) == set(tensors)
    return problem.what


def test_a_view_has_names_dtypes_and_shapes_of_the_floats(tmp_path: Path) -> None:
    tensors = {
        W: CODES,
        f"{W}_scale_inv": torch.ones(2, 1),
        f"{M}activation_scale": torch.ones(()),
        "model.layers.0.self_attn.k_scale": torch.ones(()),
        "lm_head.weight": torch.zeros(4, 4).bfloat16(),
        "model.layers.0.mlp.gate.weight": torch.zeros(4, 4),
    }
    model = model_of(tmp_path, tensors, FP8, torch_dtype="float16")
    assert (model.quantization, model.unreadable) == ("fp8", ())
    found = {name: (info.dtype, info.shape) for name, info in model.header.tensors.items()}
    assert found == {
        W: ("F16", (256, 128)),
        "lm_head.weight": ("BF16", (4, 4)),
        "model.layers.0.mlp.gate.weight": ("F32", (4, 4)),
    }
    assert model.header.tensors[W].nbytes == 256 * 128 + 2 * 4


def test_the_dtype_is_that_of_a_nested_config_or_bfloat16(tmp_path: Path) -> None:
    tensors = {W: CODES, f"{W}_scale_inv": torch.ones(2, 1)}
    nested = model_of(tmp_path / "a", tensors, FP8, text_config={"dtype": "float32"})
    plain = model_of(tmp_path / "b", tensors, FP8)
    odd = model_of(tmp_path / "c", tensors, FP8, dtype="float8_e4m3fn")
    assert [m.header.tensors[W].dtype for m in (nested, plain, odd)] == ["F32", "BF16", "BF16"]


def test_settings_of_a_nested_config_count(tmp_path: Path) -> None:
    tensors = {W: CODES, f"{W}_scale_inv": torch.ones(4, 2)}
    settings = {"quant_method": "fp8", "weight_block_size": [64, 64]}
    model = model_of(tmp_path, tensors, None, text_config={"quantization_config": settings})
    coded = model.header.tensors[W].coded
    assert coded is not None
    assert coded.block == (64, 64)


def test_a_single_file_needs_no_config_where_blocks_are_plain(tmp_path: Path) -> None:
    folder = q.save(tmp_path, {W: CODES, f"{W}_scale_inv": torch.ones(2, 1)})
    model = resolve(str(folder / "model.safetensors"), relative_to=folder)
    assert (model.quantization, model.unreadable) == ("fp8", ())


@pytest.mark.parametrize(
    ("scale", "settings", "says"),
    [
        (torch.ones(2, 2), FP8, "[2, 2] does not fit blocks of 128x128 of [256, 128]"),
        (torch.ones(3, 1), {"quant_method": "fp8"}, "[3, 1] does not fit"),
        (torch.ones(4, 2), {"quant_method": "fp8"}, "[4, 2] does not fit"),
        (torch.ones(2, 1).int(), FP8, "`model.layers.0.mlp.up_proj.weight_scale_inv` is I32"),
        (torch.ones(2, 1).byte(), FP8, "is U8, which is no scale"),
    ],
)
def test_scales_that_do_not_fit(tmp_path: Path, scale: Tensor, settings: Any, says: str) -> None:
    assert says in fault(tmp_path, {W: CODES, f"{W}_scale_inv": scale}, settings)


def test_codes_without_scales(tmp_path: Path) -> None:
    tensors = {f"model.layers.{n}.{W}": CODES.clone() for n in range(5)}
    what = fault(tmp_path, tensors, FP8)
    assert "quantised (fp8)" in what
    assert "is F8_E4M3" in what
    assert what.endswith("and 2 more")


def test_one_weight_without_its_scale_among_others(tmp_path: Path) -> None:
    tensors = {W: CODES, f"{W}_scale_inv": torch.ones(2, 1), "lm_head.weight": CODES.clone()}
    assert "`lm_head.weight` is F8_E4M3" in fault(tmp_path, tensors, FP8)


def test_integers_beside_scales_of_fp8(tmp_path: Path) -> None:
    tensors = {W: torch.zeros(256, 64, dtype=torch.int8), f"{W}_scale_inv": torch.ones(256, 2)}
    assert "nothing says what its integers stand for" in fault(tmp_path, tensors, FP8)


def test_a_weight_that_is_stored_twice(tmp_path: Path) -> None:
    stored, _ = q.pack_quantised(W, (8, 64), 4, 32, zero=False, order=False)
    tensors = stored | {W: torch.zeros(8, 64)}
    assert "stored twice" in fault(tmp_path, tensors, q.group_config(4, 32))


def _weights(bits: int, group: int, targets: list[str], **more: Any) -> dict[str, Any]:
    config = q.group_config(bits, group, **more)["config_groups"]["group_0"]
    return config | {"targets": targets}


def test_schemes_are_told_apart_by_targets_then_by_what_fits(tmp_path: Path) -> None:
    four, _ = q.pack_quantised(W, (8, 64), 4, 64, zero=False, order=False)
    other = W.replace("up_proj", "down_proj")
    eight, _ = q.pack_quantised(other, (8, 64), 8, 64, zero=False, order=False)
    settings = {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "a": _weights(4, 64, ["re:.*up_proj$"]),
            "b": _weights(8, 64, [other.removesuffix(".weight")]),
        },
    }
    tensors = {k: v for k, v in (four | eight).items() if not k.endswith("_shape")}
    model = model_of(tmp_path / "a", tensors, settings)
    assert model.unreadable == ()
    assert model.header.tensors[W].shape == model.header.tensors[other].shape == (8, 64)
    groups = {"a": _weights(4, 0, ["Linear"], strategy="channel"),
              "b": _weights(8, 0, ["Linear"], strategy="channel")}  # fmt: skip
    what = fault(tmp_path / "b", tensors, settings | {"config_groups": groups})
    assert "fits 2 of the config's schemes (4 bits, 8 bits)" in what


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({f"{W}_packed": torch.zeros(8, 8).long()}, "is I64, packed codes are I32"),
        ({f"{W}_zero_point": torch.zeros(8, 3).char()}, "`_zero_point` I8 [8, 3]"),
        ({f"{W}_g_idx": torch.zeros(50).int()}, "fits 0 of"),
        ({f"{W}_shape": torch.zeros(3).long()}, "is no shape"),
        ({f"{W}_scale": torch.ones(8, 3)}, "fits 0 of the config's schemes (4 bits)"),
    ],
)
def test_parts_of_packed_integers_that_do_not_fit(
    tmp_path: Path, change: dict[str, Tensor], says: str
) -> None:
    stored, _ = q.pack_quantised(W, (8, 64), 4, 32, zero=False, order=False)
    what = fault(tmp_path, stored | change, q.group_config(4, 32))
    assert says.replace("`_", f"`{W}_") in what


def test_integers_of_odd_widths_are_refused(tmp_path: Path) -> None:
    stored, _ = q.pack_quantised(W, (8, 64), 4, 32, zero=False, order=False)
    what = fault(tmp_path, stored, q.group_config(3, 32))
    assert "(3 bits); integers of 2, 4 and 8 bits are known" in what


def test_floats_with_zero_points_are_refused(tmp_path: Path) -> None:
    groups = {"a": _weights(8, 0, ["Linear"], strategy="tensor", type="float", symmetric=False)}
    settings = {"quant_method": "compressed-tensors", "config_groups": groups}
    assert "zero points" in fault(tmp_path, {W: CODES, f"{W}_scale": torch.ones(1)}, settings)


def test_blocks_of_small_floats_of_another_size(tmp_path: Path) -> None:
    tensors = {
        "x_blocks": torch.zeros(2, 3, 4, 8, dtype=torch.uint8),
        "x_scales": torch.zeros(2, 3, 4, dtype=torch.uint8),
    }
    assert "not 16 bytes and one scale" in fault(tmp_path, tensors, {"quant_method": "mxfp4"})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"transform_config": {"config_groups": {"R1": {}}}}, "rotated weights"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
    ],
)
def test_what_else_was_done_to_weights_is_not_overlooked(
    tmp_path: Path, more: dict[str, Any], says: str
) -> None:
    stored, _ = q.pack_quantised(W, (8, 64), 4, 32, zero=False, order=False)
    assert says in fault(tmp_path, stored, q.group_config(4, 32) | more)


def test_settings_that_are_no_settings_are_passed_over(tmp_path: Path) -> None:
    stored, _ = q.pack_quantised(W, (8, 64), 4, 32, zero=False, order=False)
    weights = {"num_bits": "4", "group_size": None, "type": 3}
    groups = {"a": 5, "b": {"weights": weights}, "c": {"weights": 1}}
    settings = {"quant_method": "compressed-tensors", "config_groups": groups}
    assert "fits 0 of the config's schemes" in fault(tmp_path / "a", stored, settings)
    settings = q.group_config(4, 32) | {"weight_block_size": ["128", 0]}
    assert model_of(tmp_path / "b", stored, settings).unreadable == ()
