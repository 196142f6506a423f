"""Codes of every scheme are those of the formats' own libraries, and of their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.quant_args import FP4_E2M1_DATA
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

from mergekit_lite.checkpoint.coded.encode import CodeError, encoded, to_e2m1, to_e4m3
from mergekit_lite.checkpoint.coded.numbers import numbers, table
from mergekit_lite.checkpoint.coded.schemes import SCHEMES, Codes

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32,
         "F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8}  # fmt: skip


def weight(rows: int = 256, columns: int = 256, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(0, 0.02, (rows, columns))
    return torch.from_numpy(drawn).to(torch.bfloat16).float().numpy()


def theirs(name: str) -> QuantizationScheme:
    return preset_name_to_scheme(name, ["Linear"])


def raw(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy().reshape(-1)


def largest(values: np.ndarray, codes: Codes) -> torch.Tensor:
    down, across = codes.block[0] or len(values), codes.block[1] or values.shape[1]
    grid = values.reshape(len(values) // down, down, values.shape[1] // across, across)
    return torch.from_numpy(np.abs(grid).max(axis=(1, 3)))


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_codes_and_scales_are_those_of_compressed_tensors(name: str, dtype: str) -> None:
    values, scheme = weight(), SCHEMES[name]
    codes = scheme.codes_for(dtype, None, search=False)
    peak = float(np.abs(values).max())
    args, top = theirs(name).weights, largest(values, codes)
    beside = {}
    if codes.divided:
        bound = torch.tensor(peak)
        beside["weight_global_scale"] = generate_gparam(-bound, bound)
    scale, _ = calculate_qparams(-top, top, args, beside.get("weight_global_scale"))
    if name == "MXFP4A16":  # powers of two, which their own function turns into bytes in the end
        exponents = torch.from_numpy(encoded(values, codes)[1].reshape(top.shape).copy())
        scale = 2.0 ** (exponents.float() - 127)
    else:
        scale = scale.to(TORCH[codes.scale])
    state = {"weight": torch.from_numpy(values), "weight_scale": scale.float(), **beside}
    state |= {"weight_scale": scale.float().reshape(top.shape if scale.numel() > 1 else (1,))}
    compressor = BaseCompressor.get_value_from_registry(scheme.layout)
    packed = compressor.compress(state, theirs(name))
    wanted = packed.get("weight_packed", packed.get("weight"))
    made, scales = encoded(values, codes, peak)
    mine = table(codes.form if codes.form[0] == "E" else "I8").reshape(256, -1)
    assert np.array_equal(mine[raw(wanted)], mine[made.reshape(-1)])  # -0.0 is 0.0
    if name != "MXFP4A16":
        assert np.array_equal(raw(scale), scales.reshape(-1))


def test_powers_of_two_go_up_from_three_quarters_on() -> None:
    codes = SCHEMES["MXFP4A16"].codes_for("BF16", None, search=False)
    values = np.zeros((6, 32), np.float32)
    values[:5, 3] = 1.0, 1.7, 1.75, 6.0, 7.0
    found = encoded(values, codes)[1].reshape(-1)
    assert found.tolist() == [125, 125, 126, 127, 128, 0]


def test_floats_are_rounded_as_torch_does() -> None:
    drawn = np.random.default_rng(1).normal(0, 40, 50_000)
    small = np.random.default_rng(2).normal(0, 0.01, 50_000)
    grid = np.arange(-448, 448.01, 1 / 64)
    values = np.concatenate([drawn, small, grid]).astype(np.float32).clip(-448, 448)
    wanted = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(to_e4m3(values), wanted)
    four = np.arange(-6, 6.001, 1 / 64).astype(np.float32)
    wanted = FP4_E2M1_DATA.cast_to_fp4(torch.from_numpy(four)).numpy()
    assert np.array_equal(numbers("E2M1")[to_e2m1(four)], wanted)


def test_zeros_have_codes_of_zero_and_a_scale() -> None:
    for scheme in SCHEMES.values():
        codes = scheme.codes_for("BF16", None, search=False)
        made, scales = encoded(np.zeros((128, 128), np.float32), codes)
        zero = {"U8": 128, "U4": 0x88}.get(codes.form, 0)
        assert (made == zero).all()
        assert scales.any() or codes.scale == "U8"


def test_a_search_never_has_a_larger_error() -> None:
    values = weight(16, 256, seed=3)
    values[0, 5] = 0.5  # an entry that lies far out
    errors = []
    for search in (False, True):
        codes = SCHEMES["W4A16"].codes_for("F32", None, search=search)
        made, scales = encoded(values, codes)
        whole = table("U4").reshape(256, 2)[made].reshape(16, 2, 128)
        back = whole * scales.view(np.float32).reshape(16, 2, 1)
        errors.append(np.square(back.reshape(16, 256) - values).sum(axis=1))
    assert (errors[1] <= errors[0]).all()
    assert errors[1].sum() < 0.95 * errors[0].sum()


def test_what_has_no_code_is_refused() -> None:
    values = weight(2, 128)
    values[1, 3] = np.inf
    codes = SCHEMES["FP8_DYNAMIC"].codes_for("BF16", None, search=False)
    with pytest.raises(CodeError, match="not finite"):
        encoded(values, codes)
    values[1, 3] = 3e38
    half = SCHEMES["W8A8"].codes_for("F16", None, search=False)
    with pytest.raises(CodeError, match="scale that F16 cannot hold"):
        encoded(values, half)


def test_configs_are_those_of_compressed_tensors() -> None:
    from compressed_tensors.quantization import QuantizationConfig

    for name, scheme in SCHEMES.items():
        said = scheme.config(scheme.codes_for("BF16", None, search=False), ["lm_head"])
        read = QuantizationConfig.model_validate(said)
        theirs_too = QuantizationConfig(config_groups={"group_0": theirs(name)}).model_dump(
            mode="json"
        )
        group = read.model_dump(mode="json")["config_groups"]["group_0"]
        wanted = theirs_too["config_groups"]["group_0"]
        assert group["weights"] == wanted["weights"]
        if name != "FP8":  # whose inputs would need a calibrated scale
            assert group["input_activations"] == wanted["input_activations"]
        assert read.format == scheme.layout
        assert read.ignore == ["lm_head"]
