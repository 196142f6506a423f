"""Schemes that outputs are quantised by, as compressed-tensors names and describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

BITS_OF = {"E4M3": 8, "I8": 8, "U8": 8, "U4": 4, "E2M1": 4}
"""Bits of a code of each form that is written."""

Stored = tuple[str, tuple[int, ...]]
"""Dtype and shape of a tensor."""

_TOKEN_INT = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
_TOKEN_FLOAT = {**_TOKEN_INT, "type": "float"}
_GROUP_FLOAT = {**_TOKEN_FLOAT, "strategy": "group", "group_size": 128}
_PACKED_FLOATS = {"F8_E4M3": "torch.float8_e4m3fn", "U8": "torch.uint8"}


@dataclass(frozen=True, slots=True)
class Codes:
    """How the entries of a matrix become codes.

    Attributes:
        form: `E4M3`, `I8`, `U8` and `U4` (integers packed in words of 32 bits), `E2M1`.
        block: rows and columns that share a scale; 0 stands for all of them.
        scale: safetensors dtype of the scales.
        search: look for the scale of least squared error in place of that of the largest entry.
    """

    form: str
    block: tuple[int, int]
    scale: str
    search: bool = False

    @property
    def divided(self) -> bool:
        """Whether the scales are themselves divided by one number for the whole tensor."""
        return self.form == "E2M1" and self.scale == "F8_E4M3"

    @property
    def whole(self) -> bool:
        """Whether the largest magnitude of the whole tensor is needed before the first code."""
        return self.divided or self.block == (0, 0)

    def grid(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return rows and columns of the grid of scales over a matrix."""
        return ceil(shape[0] / (self.block[0] or shape[0])), ceil(
            shape[1] / (self.block[1] or shape[1])
        )

    def stored(self, shape: Sequence[int]) -> Mapping[str, Stored]:
        """Return what is stored of a matrix: suffix of the name -> dtype and shape, codes first."""
        rows, columns = shape
        scales: Stored = (self.scale, (1,) if self.block == (0, 0) else self.grid(shape))
        found: dict[str, Stored]
        if self.form in ("E4M3", "I8"):
            dtype = {"E4M3": "F8_E4M3", "I8": "I8"}[self.form]
            return {"": (dtype, (rows, columns)), "_scale": scales}
        if self.form == "E2M1":
            found = {"_packed": ("U8", (rows, columns // 2)), "_scale": scales}
            return {**found, "_global_scale": ("F32", (1,))} if self.divided else found
        words = ceil(columns * BITS_OF[self.form] / 32)
        return {"_packed": ("I32", (rows, words)), "_scale": scales, "_shape": ("I64", (2,))}


@dataclass(frozen=True)
class OutputScheme:
    """A scheme by name.

    Attributes:
        name: as users and runtimes call it.
        layout: compressed-tensors' name of the format on disk.
        codes: how entries become codes; a scale of no dtype has that of the unquantised tensors.
        inputs: how runtimes quantise what goes into a layer; None for not at all.
        about: what it is, in a few words.
    """

    name: str
    layout: str
    codes: Codes
    inputs: Mapping[str, Any] | None
    about: str

    @property
    def grouped(self) -> bool:
        """Whether the size of its groups can be chosen."""
        return self.layout == "pack-quantized"

    @property
    def searchable(self) -> bool:
        """Whether scales of least squared error can be looked for."""
        return self.codes.form in ("I8", "U8", "U4")

    def codes_for(self, dtype: str, group: int | None, *, search: bool) -> Codes:
        """Return how entries become codes in a checkpoint of a float dtype.

        Args:
            dtype: safetensors dtype of the unquantised tensors.
            group: columns that share a scale, 0 for whole rows, None for what is usual.
            search: look for scales of least squared error.
        """
        block = self.codes.block if group is None else (1, group)
        return replace(self.codes, block=block, scale=self.codes.scale or dtype, search=search)

    def config(self, codes: Codes, ignore: Sequence[str]) -> dict[str, Any]:
        """Return the `quantization_config` of a checkpoint.

        Args:
            codes: of its matrices.
            ignore: modules that stay as they are.
        """
        group = {
            "targets": ["Linear"],
            "weights": self._weights(codes),
            "input_activations": None if self.inputs is None else dict(self.inputs),
            "output_activations": None,
            "format": self.layout,
        }
        return {
            "config_groups": {"group_0": group},
            "quant_method": "compressed-tensors",
            "kv_cache_scheme": None,
            "format": self.layout,
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "ignore": list(ignore),
        }

    def _weights(self, codes: Codes) -> dict[str, Any]:
        down, across = codes.block
        said: dict[str, Any] = {
            "num_bits": BITS_OF[codes.form],
            "type": "float" if codes.form.startswith("E") else "int",
            "symmetric": True,
            "group_size": across if down == 1 and across else None,
            "strategy": "block" if down > 1 else "group" if across else "channel",
            "dynamic": False,
        }
        if codes.block == (0, 0):
            said["strategy"] = "tensor"
        elif down > 1:
            said["block_structure"] = [down, across]
        if codes.form == "E2M1":
            said["scale_dtype"] = _PACKED_FLOATS[codes.scale]
            said["strategy"] = "tensor_group" if codes.divided else "group"
        return said


_FLOATS, _INTS, _PACKED = "float-quantized", "int-quantized", "pack-quantized"
SCHEMES: Mapping[str, OutputScheme] = {
    scheme.name: scheme
    for scheme in (
        OutputScheme(
            "FP8", _FLOATS, Codes("E4M3", (0, 0), ""), _TOKEN_FLOAT,
            "8-bit floats, one scale for each matrix",
        ),
        OutputScheme(
            "FP8_DYNAMIC", _FLOATS, Codes("E4M3", (1, 0), ""), _TOKEN_FLOAT,
            "8-bit floats, one scale for each row",
        ),
        OutputScheme(
            "FP8_BLOCK", _FLOATS, Codes("E4M3", (128, 128), ""), _GROUP_FLOAT,
            "8-bit floats, one scale for each block of 128 x 128",
        ),
        OutputScheme(
            "W8A8", _INTS, Codes("I8", (1, 0), ""), _TOKEN_INT,
            "8-bit integers, one scale for each row",
        ),
        OutputScheme(
            "W8A16", _PACKED, Codes("U8", (1, 128), ""), None,
            "8-bit integers in groups of 128",
        ),
        OutputScheme(
            "W4A16", _PACKED, Codes("U4", (1, 128), ""), None,
            "4-bit integers in groups of 128",
        ),
        OutputScheme(
            "NVFP4A16", "nvfp4-pack-quantized", Codes("E2M1", (1, 16), "F8_E4M3"), None,
            "4-bit floats in groups of 16 with 8-bit scales",
        ),
        OutputScheme(
            "MXFP4A16", "mxfp4-pack-quantized", Codes("E2M1", (1, 32), "U8"), None,
            "4-bit floats in groups of 32 with powers of two as scales",
        ),
    )
}  # fmt: skip
"""Every scheme that needs no data, by name."""
