"""What every code of each form stands for, as tables, and the forms of scales.

E4M3, E5M2 and E2M1 are the formats of the OCP specifications of 8-bit and microscaling floats
(E4M3 without infinities, NaN as all ones); E8M0 is a power of two with bias 127, 255 is NaN.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.errors import DataError

BITS = {"E4M3": 8, "E5M2": 8, "I8": 8, "E2M1": 4, "U2": 2, "U4": 4, "U8": 8}
"""Bits of a code of each form."""


def numbers(form: str) -> NDArray[np.float32]:
    """Return what each code of a form stands for, in the order of the codes."""
    codes = np.arange(1 << BITS[form])
    if form.startswith("U"):
        return (codes - len(codes) // 2).astype(np.float32)
    if form == "I8":
        return codes.astype(np.uint8).view(np.int8).astype(np.float32)
    if form == "E2M1":
        positive = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
        return np.concatenate([positive, -positive])
    mantissa = {"E4M3": 3, "E5M2": 2}[form]
    exponent = (codes & 0x7F) >> mantissa
    fraction = (codes & ((1 << mantissa) - 1)) / (1 << mantissa)
    bias = {"E4M3": 7, "E5M2": 15}[form]
    value = np.where(
        exponent == 0,
        np.ldexp(fraction, 1 - bias),
        np.ldexp(1 + fraction, exponent - bias),
    )
    if form == "E4M3":
        value[(codes & 0x7F) == 0x7F] = np.nan
    else:
        value[exponent == 31] = np.where(fraction[exponent == 31] == 0, np.inf, np.nan)
    return np.where(codes < 0x80, value, -value).astype(np.float32)


@cache
def table(form: str) -> NDArray[np.float32]:
    """Return the numbers of every byte of a form, flat: of all its codes, the lowest bits first."""
    each = numbers(form)
    byte = np.arange(256)
    columns = [(byte >> shift) & (len(each) - 1) for shift in range(0, 8, BITS[form])]
    return each[np.stack(columns, axis=1)].reshape(-1)


@cache
def _powers() -> NDArray[np.float32]:
    powers = np.ldexp(1.0, np.arange(255) - 127)
    return np.append(powers, np.nan).astype(np.float32)


def scales(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Return stored scales as fp32, exactly, but for F64, which is rounded.

    Raises:
        DataError: scales are never stored in that dtype.
    """
    if dtype in ("U8", "F8_E8M0"):
        return _powers()[raw]
    if dtype == "F8_E4M3":
        return table("E4M3")[raw]
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    kinds = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
    if dtype not in kinds:
        raise DataError(f"scales of dtype {dtype} mean nothing")
    return raw.view(kinds[dtype]).astype(np.float32)
