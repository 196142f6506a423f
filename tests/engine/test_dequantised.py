"""Every known layout decodes to what its formula says, entry by entry and tile by tile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.checkpoint import FileReader, TensorInfo
from mergekit_lite.checkpoint.coded import grid
from mergekit_lite.checkpoint.coded.numbers import numbers, scales
from mergekit_lite.engine import dequantised
from mergekit_lite.engine.dequantised import decoder, pieces
from mergekit_lite.errors import DataError
from mergekit_lite.sources import Model, resolve
from tests import quantised as q

W = "model.layers.0.mlp.up_proj.weight"
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def view(folder: Path, name: str = W) -> tuple[Model, TensorInfo]:
    model = resolve(str(folder), relative_to=folder)
    assert model.unreadable == ()
    return model, model.header.tensors[name]


def decoded(folder: Path, name: str = W, tile: int = 0) -> np.ndarray:
    """Return a tensor decoded in tiles of a size, or whole."""
    model, info = view(folder, name)
    reader = model.open(info.file)

    def fetch(part: TensorInfo, start: int, out: np.ndarray) -> None:
        assert start + out.nbytes <= part.nbytes
        reader.read_into(out, part.start + start)

    found = decoder(info, fetch)
    out = np.full(info.size, np.nan, np.float32)
    for first in range(0, info.size, tile or info.size):
        found.fill(first, out[first : first + (tile or info.size)])
    reader.close()
    return out.reshape(info.shape)


def equal(folder: Path, value: np.ndarray, name: str = W) -> None:
    """Require the exact value, whatever the tiles."""
    value = value.astype(np.float32)
    np.testing.assert_array_equal(decoded(folder, name), value)
    for tile in (1000, 37, value.shape[-1]):
        np.testing.assert_array_equal(decoded(folder, name, tile), value)


@pytest.mark.parametrize("form", ["E4M3", "E5M2"])
def test_fp8_codes_are_those_of_torch(form: str) -> None:
    kind = {"E4M3": torch.float8_e4m3fn, "E5M2": torch.float8_e5m2}[form]
    expected = torch.arange(256, dtype=torch.uint8).view(kind).float().numpy()
    np.testing.assert_array_equal(numbers(form), expected)


def test_scales_that_are_powers_of_two() -> None:
    raw = np.array([0, 1, 126, 127, 128, 254, 255], np.uint8)
    expected = np.array([2.0**-127, 2.0**-126, 0.5, 1, 2, 2.0**127, np.nan], np.float32)
    np.testing.assert_array_equal(scales(raw, "F8_E8M0"), expected)
    with pytest.raises(DataError, match="I64"):
        scales(raw, "I64")


@pytest.mark.parametrize("shape", [(256, 384), (200, 300), (1, 129), (130, 7), (3, 130, 140)])
def test_fp8_in_blocks(tmp_path: Path, shape: tuple[int, ...]) -> None:
    stored, value = q.fp8_blocks(W, torch.randn(shape) * 0.1)
    q.save(tmp_path, stored, FP8)
    equal(tmp_path, value)


def test_fp8_of_the_other_kind_with_scales_of_two_bytes(tmp_path: Path) -> None:
    stored, _ = q.fp8_blocks(W, torch.randn(40, 72), (16, 32), "float8_e5m2")
    scale = stored[f"{W}_scale_inv"] = stored[f"{W}_scale_inv"].bfloat16()
    q.save(tmp_path, stored, {"quant_method": "fp8", "weight_block_size": [16, 32]})
    equal(tmp_path, stored[W].float().numpy() * q.spread(scale, (40, 72), (16, 32)))


@pytest.mark.parametrize("suffix", ["_scale", "_scale_inv"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_fp8_with_one_scale(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    stored, value = q.fp8_whole(W, torch.randn(300, 257), suffix)
    stored[W + suffix] = stored[W + suffix].reshape(shape)
    stored[f"{W.removesuffix('weight')}input_scale"] = torch.ones(())
    q.save(tmp_path, stored, {"quant_method": "fp8", "activation_scheme": "static"})
    equal(tmp_path, value)


def test_one_scale_for_several_matrices(tmp_path: Path) -> None:
    stored, value = q.fp8_whole(W, torch.randn(3, 130, 50))
    q.save(tmp_path, stored, {"quant_method": "fp8"})
    equal(tmp_path, value)


def test_scales_are_read_once_however_small_the_tiles(tmp_path: Path) -> None:
    stored, _ = q.pack_quantised(W, (300, 256), 4, 32, zero=True, order=False)
    q.save(tmp_path, stored, q.group_config(4, 32, symmetric=False))
    model, info = view(tmp_path)
    assert info.coded is not None
    reads: list[str] = []
    reader = model.open(info.file)

    def fetch(part: TensorInfo, start: int, out: np.ndarray) -> None:
        reads.append(part.name)
        reader.read_into(out, part.start + start)

    found = decoder(info, fetch)
    reads.clear()
    for first in range(0, info.size, 100):
        found.fill(first, np.empty(100, np.float32))
    assert reads.count(info.coded.scale.name) == 1
    assert reads.count(f"{W}_zero_point") == 1
    found.fill(0, np.empty(1, np.float32))
    assert reads.count(info.coded.scale.name) == 1
    reader.close()


def test_more_scales_than_are_held_come_line_after_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "HELD", 64)
    monkeypatch.setattr(dequantised, "PIECE", 500)
    stored, value = q.pack_quantised(W, (75, 160), 4, 32, zero=True, order=False)
    q.save(tmp_path, stored, q.group_config(4, 32, symmetric=False))
    equal(tmp_path, value)


@pytest.mark.parametrize("ends", [(), (1,)])
def test_fp8_with_a_scale_for_each_row(tmp_path: Path, ends: tuple[int, ...]) -> None:
    codes = torch.randn(300, 40).to(torch.float8_e4m3fn)
    scale = torch.rand(300, *ends)
    q.save(tmp_path, {W: codes, f"{W}_scale": scale}, {"quant_method": "fbgemm_fp8"})
    equal(tmp_path, codes.float().numpy() * scale.numpy().reshape(300, 1))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("order", [False, True])
def test_integers_in_groups(tmp_path: Path, bits: int, zero: bool, order: bool) -> None:
    stored, value = q.pack_quantised(W, (75, 160), bits, 32, zero=zero, order=order)
    q.save(tmp_path, stored, q.group_config(bits, 32, symmetric=not zero))
    equal(tmp_path, value)


def test_zero_points_that_are_not_packed_and_groups_in_order(tmp_path: Path) -> None:
    stored, value = q.pack_quantised(W, (40, 64), 4, 32, zero=False, order=False)
    zeros = torch.randint(-8, 8, (40, 2), dtype=torch.int8)
    stored |= {f"{W}_zero_point": zeros, f"{W}_g_idx": torch.full((64,), -1, dtype=torch.int32)}
    q.save(tmp_path, stored, q.group_config(4, 32, symmetric=False))
    scale = stored[f"{W}_scale"].float().numpy()
    equal(tmp_path, value - (zeros.numpy() * scale).repeat(32, 1))


def test_integers_of_8_bits_for_each_row(tmp_path: Path) -> None:
    codes = torch.randint(-128, 128, (33, 50), dtype=torch.int8)
    scale = torch.rand(33, 1)
    settings = q.group_config(8, 0, strategy="channel") | {"format": "int-quantized"}
    q.save(tmp_path, {W: codes, f"{W}_scale": scale}, settings)
    equal(tmp_path, codes.float().numpy() * scale.numpy())


@pytest.mark.parametrize("kind", ["mxfp4", "nvfp4"])
def test_pairs_of_small_floats(tmp_path: Path, kind: str) -> None:
    group = {"mxfp4": 32, "nvfp4": 16}[kind]
    codes = torch.randint(0, 256, (50, 96), dtype=torch.uint8)
    raw = codes.numpy()
    value = np.stack([q.FP4[raw & 15], q.FP4[raw >> 4]], -1).reshape(50, 192)
    if kind == "mxfp4":
        scale = torch.randint(120, 130, (50, 192 // group), dtype=torch.uint8)
        factor = np.ldexp(np.float32(1), scale.numpy().astype(int) - 127)
        stored = {f"{W}_packed": codes, f"{W}_scale": scale}
    else:
        scale = torch.rand(50, 192 // group).to(torch.float8_e4m3fn)
        divisor = torch.tensor([7.3])
        factor = scale.float().numpy() / divisor.numpy()
        stored = {f"{W}_packed": codes, f"{W}_scale": scale, f"{W}_global_scale": divisor}
    q.save(tmp_path, stored, {"quant_method": "compressed-tensors", "format": kind})
    equal(tmp_path, value * factor.repeat(group, 1))


@pytest.mark.parametrize("rows", [40, 5000])
def test_experts_in_mxfp4(tmp_path: Path, rows: int) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stored, value = q.mxfp4_experts(name, 3, rows, 2)
    q.save(tmp_path, stored, {"quant_method": "mxfp4"})
    assert view(tmp_path, name)[1].shape == (3, 64, rows)
    equal(tmp_path, value, name)


@pytest.mark.slow
def test_experts_in_mxfp4_as_transformers_reads_them(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    stored, _ = q.mxfp4_experts(W, 2, 24, 3)
    q.save(tmp_path, stored, {"quant_method": "mxfp4"})
    expected = convert_moe_packed_tensors(stored[f"{W}_blocks"], stored[f"{W}_scales"])
    found = torch.from_numpy(decoded(tmp_path)).bfloat16()
    assert torch.equal(found, expected.reshape(found.shape))


def test_a_nan_in_codes_or_scales_stays_one(tmp_path: Path) -> None:
    codes = torch.tensor([[0x7F, 0x38]], dtype=torch.uint8).view(torch.float8_e4m3fn)
    q.save(tmp_path, {W: codes, f"{W}_scale": torch.tensor(2.0)}, {"quant_method": "fp8"})
    np.testing.assert_array_equal(decoded(tmp_path), np.array([[np.nan, 2]], np.float32))


def test_a_stored_shape_that_is_another_is_damage(tmp_path: Path) -> None:
    stored, _ = q.pack_quantised(W, (8, 64), 4, 32, zero=False, order=False)
    stored[f"{W}_shape"] = torch.tensor([8, 60])
    q.save(tmp_path, stored, q.group_config(4, 32))
    with pytest.raises(DataError, match=r"\[8, 60\].*\[8, 64\]"):
        decoded(tmp_path)


def test_groups_that_are_not_there_are_damage(tmp_path: Path) -> None:
    stored, _ = q.pack_quantised(W, (8, 64), 4, 32, zero=False, order=True)
    stored[f"{W}_g_idx"][5] = 2
    q.save(tmp_path, stored, q.group_config(4, 32))
    with pytest.raises(DataError, match="groups that are not there"):
        decoded(tmp_path)


def test_a_plain_tensor_has_no_decoder(tmp_path: Path) -> None:
    q.save(tmp_path, {W: torch.ones(2)})
    _, info = view(tmp_path)
    with FileReader(tmp_path / info.file), pytest.raises(DataError, match="not quantised"):
        decoder(info, lambda *_: None)


@given(st.integers(0, 500), st.integers(0, 3000), st.integers(1, 90), st.integers(1, 300))
def test_pieces_cover_a_range_once_in_order(first: int, count: int, width: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dequantised, "PIECE", most)
        found = list(pieces(first, count, width))
    flat = [
        (row + r) * width + column + c
        for row, rows, column, columns in found
        for r in range(rows)
        for c in range(columns)
    ]
    assert flat == list(range(first, first + count))
    assert all(rows * columns <= most or rows == 1 for _, rows, _, columns in found)
    assert all(columns == width or rows == 1 for _, rows, _, columns in found)
