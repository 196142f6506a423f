"""From stored codes and scales to the tensor that they stand for, one function for each layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

from mergekit_lite.checkpoint._types import Coded, TensorInfo
from mergekit_lite.checkpoint.coded.settings import Scheme, Settings

Tensors = Mapping[str, TensorInfo]

_SCALES = frozenset({"F32", "BF16", "F16", "F64", "F8_E8M0"})
_FP8 = {"F8_E4M3": "E4M3", "F8_E5M2": "E5M2"}
_FP8_BLOCK = (128, 128)


class LayoutError(Exception):
    """Stored tensors do not fit together; the text says how."""


@dataclass(frozen=True)
class Stored:
    """Codes that were found, and all that is stored beside them under the same stem."""

    stem: str
    codes: TensorInfo
    beside: Tensors

    def part(self, suffix: str) -> TensorInfo | None:
        """Return the tensor that is called like the stem with a suffix."""
        return self.beside.get(self.stem + suffix)


def found_in(name: str, info: TensorInfo, tensors: Tensors) -> Stored | None:
    """Return what is stored under a name if these are codes that a layout below knows."""
    for suffix, scale in (("_blocks", "_scales"), ("_packed", "_scale")):
        stem = name.removesuffix(suffix)
        if stem != name and stem + scale in tensors:
            return Stored(stem, info, tensors)
    if info.dtype in (*_FP8, "I8") and any(name + s in tensors for s in ("_scale", "_scale_inv")):
        return Stored(name, info, tensors)
    return None


def view_of(stored: Stored, settings: Settings) -> TensorInfo:
    """Return the tensor that stored codes stand for.

    Raises:
        LayoutError: the parts do not fit together, or what they mean cannot be told.
    """
    codes = stored.codes
    if codes.name == f"{stored.stem}_blocks":
        shape, coded = _mxfp4(stored)
    elif codes.name == f"{stored.stem}_packed":
        shape, coded = _fp4(stored) if codes.dtype == "U8" else _packed(stored, settings)
    elif codes.dtype == "I8":
        shape, coded = codes.shape, _int8(stored, settings)
    else:
        shape, coded = codes.shape, _fp8(stored, settings)
    return TensorInfo(stored.stem, settings.dtype, shape, codes.file, codes.start, coded)


def _scale(stored: Stored, dtypes: frozenset[str] = _SCALES) -> TensorInfo:
    scale = stored.part("_scale_inv") or stored.part("_scale") or stored.part("_scales")
    if scale is None:
        raise LayoutError(f"`{stored.stem}` has no scale")
    if scale.dtype not in dtypes:
        raise LayoutError(f"`{scale.name}` is {scale.dtype}, which is no scale of this format")
    return scale


def _fp8(stored: Stored, settings: Settings) -> Coded:
    codes, scales = stored.codes, _SCALES
    module = stored.stem.rpartition(".")[0]
    schemes = [s for s in settings.schemes_of(module) if s.kind == "float" and s.bits == 8]
    if any(scheme.block == (1, 32) for scheme in schemes):
        scales = scales | {"U8"}  # exponents of the microscaling formats
    if settings.schemes and not schemes:
        raise LayoutError(f"`{codes.name}` is {codes.dtype}, but no scheme of the config is fp8")
    if not all(scheme.symmetric for scheme in schemes):
        raise LayoutError(f"`{codes.name}` has zero points, which are not known for floats")
    scale = _scale(stored, scales)
    wanted = [scheme.block for scheme in schemes]
    if not schemes:
        wanted = [settings.block or _FP8_BLOCK]
    block = _block(codes.shape, scale, wanted, may_derive=not schemes and settings.block is None)
    return Coded(_FP8[codes.dtype], codes, scale, block)


def _int8(stored: Stored, settings: Settings) -> Coded:
    codes = stored.codes
    schemes = settings.schemes_of(stored.stem.rpartition(".")[0])
    wanted = [s.block for s in schemes if s.kind == "int" and s.bits == 8]
    if not wanted:
        raise LayoutError(f"`{codes.name}` is I8, but nothing says what its integers stand for")
    zero = _zero(stored, packed=False)
    scale = _scale(stored)
    return Coded("I8", codes, scale, _block(codes.shape, scale, wanted), zero)


def _packed(stored: Stored, settings: Settings) -> tuple[tuple[int, ...], Coded]:
    """Integers of 2, 4 or 8 bits in words of 32, along the rows."""
    codes, scale, groups = stored.codes, _scale(stored), stored.part("_g_idx")
    if codes.dtype != "I32" or not codes.shape:
        raise LayoutError(f"`{codes.name}` is {codes.dtype}, packed codes are I32")
    schemes = settings.schemes_of(stored.stem.rpartition(".")[0])
    fits: dict[tuple[int, int, tuple[int, int]], None] = {}
    for scheme in schemes:
        if scheme.kind != "int" or scheme.bits not in (2, 4, 8):
            continue
        width = _width(codes.shape[-1], scheme, scale, groups)
        if ceil(width * scheme.bits / 32) != codes.shape[-1]:
            continue
        shape = (*codes.shape[:-1], width)
        for block in _fitting(shape, scale, [scheme.block]):
            fits[scheme.bits, width, block] = None
    if len(fits) != 1:
        listed = ", ".join(f"{s.bits} bits" for s in schemes) or "none"
        raise LayoutError(
            f"`{codes.name}` fits {len(fits)} of the config's schemes ({listed});"
            " integers of 2, 4 and 8 bits are known"
        )
    ((bits, width, block),) = fits
    zero, dims = _zero(stored, packed=True), stored.part("_shape")
    if zero is not None and zero.dtype == "I32" and len(codes.shape) != 2:
        raise LayoutError(f"`{zero.name}` packs zero points of several matrices")
    shape = (*codes.shape[:-1], width)
    if dims is not None and (dims.dtype not in ("I64", "I32") or dims.size != len(shape)):
        raise LayoutError(f"`{dims.name}` is no shape")
    if groups is not None and (groups.dtype != "I32" or groups.size != width):
        raise LayoutError(f"`{groups.name}` does not name a group for each of {width} columns")
    return shape, Coded(f"U{bits}", codes, scale, block, zero, groups, None, dims)


def _width(words: int, scheme: Scheme, scale: TensorInfo, groups: TensorInfo | None) -> int:
    """Return the columns of a packed tensor, as exactly as headers tell."""
    if groups is not None:
        return groups.size
    if scheme.block[0] == 1 and scheme.block[1] > 0 and scale.shape:
        return scale.shape[-1] * scheme.block[1]
    return words * 32 // scheme.bits


def _fp4(stored: Stored) -> tuple[tuple[int, ...], Coded]:
    """Pairs of 4-bit floats: MXFP4 and NVFP4 of compressed-tensors."""
    codes = stored.codes
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    divisor = stored.part("_global_scale")
    group, dtypes = (32, frozenset({"U8", "F8_E8M0"}))
    if divisor is not None:
        group, dtypes = 16, frozenset({"F8_E4M3"})
        if divisor.dtype != "F32" or divisor.size != 1:
            raise LayoutError(f"`{divisor.name}` is not one F32 number")
    scale = _scale(stored, dtypes)
    block = _block(shape, scale, [(1, group)])
    return shape, Coded("E2M1", codes, scale, block, divisor=divisor)


def _mxfp4(stored: Stored) -> tuple[tuple[int, ...], Coded]:
    """Blocks of 32 4-bit floats, whose matrices are stored transposed."""
    codes, scale = stored.codes, _scale(stored, frozenset({"U8", "F8_E8M0"}))
    shape = codes.shape
    if codes.dtype != "U8" or len(shape) != 4 or shape[3] != 16 or scale.shape != shape[:3]:
        raise LayoutError(
            f"`{codes.name}` {codes.dtype} {list(shape)} and `{scale.name}` {list(scale.shape)}"
            " are not 16 bytes and one scale for each block of 32"
        )
    logical = (shape[0], shape[2] * 32, shape[1])
    return logical, Coded("E2M1", codes, scale, (32, 1), transposed=True)


def _zero(stored: Stored, *, packed: bool) -> TensorInfo | None:
    zero, scale = stored.part("_zero_point"), _scale(stored)
    if zero is None:
        return None
    if zero.dtype == "I8" and zero.size == scale.size:
        return zero
    if packed and zero.dtype == "I32" and zero.shape[1:] == scale.shape[1:]:
        return zero
    raise LayoutError(f"`{zero.name}` {zero.dtype} {list(zero.shape)} does not fit its scales")


def _block(
    shape: tuple[int, ...],
    scale: TensorInfo,
    wanted: Sequence[tuple[int, int]],
    *,
    may_derive: bool = False,
) -> tuple[int, int]:
    """Return the one block size that fits a tensor's scales.

    Args:
        shape: of the tensor.
        scale: its scales.
        wanted: what the config allows, 0 for all rows or columns.
        may_derive: take one scale for all, or for each row, where nothing of `wanted` fits.
    """
    fits = _fitting(shape, scale, wanted) or _fitting(shape, scale, [(0, 0), (1, 0)] * may_derive)
    if len(fits) == 1:
        return fits[0]
    sizes = ", ".join(f"{down or 'all'}x{across or 'all'}" for down, across in wanted)
    raise LayoutError(
        f"`{scale.name}` {list(scale.shape)} does not fit blocks of {sizes} of {list(shape)}"
    )


def _fitting(
    shape: tuple[int, ...], scale: TensorInfo, wanted: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    rows, width = (shape[-2] if len(shape) > 1 else 1), (shape[-1] if shape else 1)
    matrices = prod(shape[:-2])
    fits: dict[tuple[int, int], None] = {}
    for down, across in wanted:
        block = down or rows, across or width
        grid = ceil(rows / block[0]), ceil(width / block[1])
        whole = scale.size == 1 and grid == (1, 1)
        # Dimensions of one entry may be written or left out.
        written = [size for size in scale.shape if size != 1]
        expected = [size for size in (*shape[:-2], *grid) if size != 1]
        if whole or (written == expected and scale.size == matrices * grid[0] * grid[1]):
            fits[block] = None
    return list(fits)
