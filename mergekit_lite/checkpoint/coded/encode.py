"""From numbers to the codes and scales that stand for them, some rows of a matrix at a time.

A scale brings the largest magnitude that it is for to the largest code. It is rounded to the dtype
that it is stored in before codes are made, so that codes fit the scale that a reader finds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint.coded.numbers import scales as read_scales
from mergekit_lite.checkpoint.coded.schemes import BITS_OF, Codes

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

LARGEST = {"E4M3": 448.0, "E2M1": 6.0, "I8": 127.5, "U8": 127.5, "U4": 7.5}
"""What the largest magnitude under a scale is divided by; of integers, half of their range."""
TRIES = 40
"""Scales that a search looks at, from the full one down in steps of a hundredth."""

_EPSILON = {"F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7, "F8_E4M3": 0.125}
"""Scales of entries that are all zero, as compressed-tensors has them; their codes are zero."""


class CodeError(ValueError):
    """Numbers that no code or scale stands for; the text says what a matrix has."""


def encoded(values: Floats, codes: Codes, peak: float = 0.0) -> tuple[Bytes, Bytes]:
    """Return the bytes of the codes and of the scales of some rows.

    Args:
        values: the rows; but for the last of a matrix as many as share a scale, or a multiple.
        codes: how entries become codes.
        peak: largest magnitude of the whole matrix, where that is asked for.

    Raises:
        CodeError: an entry is not finite, or a scale does not fit its dtype.
    """
    divisor = global_scale(peak) if codes.divided else np.float32(1)
    if codes.block == (0, 0):
        largest = np.full((1, 1), peak, np.float32)
    else:
        largest = _largest(values, codes)
    if not np.isfinite(largest).all():
        raise CodeError("has entries that are not finite, and no code stands for them")
    stored, scale = _scales(largest, codes, divisor)
    if codes.search:
        stored, scale = _searched(values, codes, largest, stored, scale)
    made = _packed(_codes(values, codes, scale / divisor), codes.form)
    return made, np.ascontiguousarray(stored).view(np.uint8)


def global_scale(peak: float) -> np.float32:
    """Return the number that the 8-bit scales of a tensor are divided by."""
    with np.errstate(over="ignore"):
        found = np.float32(448 * 6) / np.float32(max(peak, 2.0**-126))
    return np.float32(found if np.isfinite(found) else 1)


def _largest(values: Floats, codes: Codes) -> Floats:
    """Return the largest magnitude of every block, as a grid."""
    rows, columns = values.shape
    down, across = codes.block[0] or rows, codes.block[1] or columns
    magnitudes = np.abs(values)
    by_row = np.maximum.reduceat(magnitudes, range(0, columns, across), axis=1)
    return np.maximum.reduceat(by_row, range(0, rows, down), axis=0)


def _scales(
    largest: Floats, codes: Codes, divisor: np.float32
) -> tuple[NDArray[np.generic], Floats]:
    """Return the scales as they are stored, and what they stand for."""
    if codes.scale == "U8":
        # Up to the next power of two from 1.75 on, so that little is cut off at the largest code.
        raised = (largest.view(np.uint32) + np.uint32(1 << 21)) >> np.uint32(23)
        powers = np.maximum(raised.astype(np.int32) - 2, 0).astype(np.uint8)
        return powers, read_scales(powers.reshape(-1), "U8").reshape(powers.shape)
    return _rounded(largest / np.float32(LARGEST[codes.form]) * divisor, codes.scale)


def _rounded(scale: Floats, dtype: str) -> tuple[NDArray[np.generic], Floats]:
    """Return scales in their dtype, to nearest even, and what they then stand for."""
    stored: NDArray[np.generic]
    with np.errstate(over="ignore"):
        if dtype == "BF16":
            bits = scale.view(np.uint32)
            stored = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        elif dtype == "F8_E4M3":
            stored = to_e4m3(np.minimum(scale, np.float32(448)))
        else:
            stored = scale.astype({"F16": np.float16, "F32": np.float32}[dtype])
    found = _read(stored, dtype)
    if not np.isfinite(found).all():
        raise CodeError(f"has a scale that {dtype} cannot hold")
    zero = found == 0
    if zero.any():
        stored[zero] = _rounded(np.full(1, _EPSILON[dtype], np.float32), dtype)[0][0]
        found = _read(stored, dtype)
    return stored, found


def _read(stored: NDArray[np.generic], dtype: str) -> Floats:
    raw = np.ascontiguousarray(stored).reshape(-1).view(np.uint8)
    return read_scales(raw, dtype).reshape(stored.shape)


def _searched(
    values: Floats,
    codes: Codes,
    largest: Floats,
    stored: NDArray[np.generic],
    scale: Floats,
) -> tuple[NDArray[np.generic], Floats]:
    """Return the scales of least squared error among some; of equals, the largest."""
    least = _errors(values, codes, scale)
    for step in range(1, TRIES):
        part = np.float32(1 - step / 100)
        other, tried = _scales(largest * part, codes, np.float32(1))
        error = _errors(values, codes, tried)
        better = error < least
        stored = np.where(better, other, stored)
        scale, least = np.where(better, tried, scale), np.where(better, error, least)
    return stored, scale


def _errors(values: Floats, codes: Codes, scale: Floats) -> NDArray[np.float64]:
    """Return the sum of squared errors under every scale."""
    blocks = values.reshape(len(values), scale.shape[1], -1)
    each = scale[:, :, None]
    apart = _whole_numbers(blocks / each, codes.form) * each - blocks
    errors: NDArray[np.float64] = np.square(apart, dtype=np.float64).sum(axis=2)
    return errors


def _codes(values: Floats, codes: Codes, scale: Floats) -> Bytes:
    rows, columns = values.shape
    if codes.block != (0, 0):
        scale = scale.repeat(codes.block[0] or rows, 0)[:rows]
        if scale.shape[1] > 1:
            scale = scale.repeat(codes.block[1], 1)[:, :columns]
    parts = values / scale
    if codes.form == "E4M3":
        return to_e4m3(np.clip(parts, np.float32(-448), np.float32(448)))
    if codes.form == "E2M1":
        return to_e2m1(np.clip(parts, np.float32(-6), np.float32(6)))
    return _whole_numbers(parts, codes.form).astype(np.int8).view(np.uint8)


def _whole_numbers(parts: Floats, form: str) -> Floats:
    half = np.float32(1 << (BITS_OF[form] - 1))
    whole: Floats = np.rint(np.clip(parts, -half, half - np.float32(1)))
    return whole


def to_e4m3(values: Floats) -> Bytes:
    """Return the codes of 8-bit floats, to nearest even; no magnitude is above 448."""
    bits = values.view(np.uint32) & np.uint32(0x7FFFFFFF)
    normal = ((bits + np.uint32(0x7FFFF) + ((bits >> 20) & 1)) >> 20) - np.uint32(120 << 3)
    small = np.rint(np.abs(values) * np.float32(512)).astype(np.uint32)
    code: Bytes = np.where(bits < np.uint32(121 << 23), small, normal).astype(np.uint8)
    return code | ((values.view(np.uint32) >> 24) & 0x80).astype(np.uint8)


def to_e2m1(values: Floats) -> Bytes:
    """Return the codes of 4-bit floats, to nearest even; no magnitude is above 6."""
    bits = values.view(np.uint32) & np.uint32(0x7FFFFFFF)
    normal = ((bits + np.uint32(0x1FFFFF) + ((bits >> 22) & 1)) >> 22) - np.uint32(126 << 1)
    small = np.rint(np.abs(values) * np.float32(2)).astype(np.uint32)
    code: Bytes = np.where(bits < np.uint32(127 << 23), small, normal).astype(np.uint8)
    return code | ((values.view(np.uint32) >> 28) & 8).astype(np.uint8)


def _packed(codes: Bytes, form: str) -> Bytes:
    """Return codes as they lie on disk: of four bits two in a byte, integers in whole words."""
    if form in ("U8", "U4"):
        codes = codes + np.uint8(1 << (BITS_OF[form] - 1))
        per_word = 32 // BITS_OF[form]
        codes = np.pad(codes, [(0, 0), (0, -codes.shape[1] % per_word)])
    if BITS_OF[form] == 4:
        codes = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    return np.ascontiguousarray(codes)
