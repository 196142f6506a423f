"""From the codes of quantised tensors to the numbers that they stand for, a tile at a time.

Every number is `(code - zero) * scale` in fp32; what a code is comes from a table, which holds
for each byte the numbers of all of its codes, those in the lowest bits first.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined, kernel

GROUP: Final = 32
"""Codes down a column that share a scale, where codes are stored transposed: 16 bytes."""
STRIP: Final = 64
"""Columns of a transposed tensor that are turned at a time, in the first cache."""


# Indices are unsigned: numba looks whether a signed one counts from the end, at every access.
_ONE: Final = np.uint64(1)


@inlined
def number_of(raw: NDArray[np.uint8], code: int, shift: int, table: NDArray[np.float32]) -> float:
    """Return what one code stands for, of a byte that may hold others."""
    byte = np.uint64(raw[np.uint64(code >> shift)])
    inside = np.uint64(code & ((1 << shift) - 1))
    return table[(byte << np.uint64(shift)) + inside]  # type: ignore[no-any-return]


@inlined
def run_of_codes(
    raw: NDArray[np.uint8],
    code: int,
    table: NDArray[np.float32],
    shift: int,
    scale: np.float32,
    zero: np.float32,
    out: NDArray[np.float32],
    at: int,
    end: int,
) -> None:
    """Write the numbers of codes from `code` on, which share a scale, to `out[at:end]`."""
    while at < end and code & ((1 << shift) - 1):
        out[np.uint64(at)] = (number_of(raw, code, shift, table) - zero) * scale
        at, code = at + 1, code + 1
    whole = (end - at) >> shift << shift
    j, i, last = np.uint64(code >> shift), np.uint64(at), np.uint64(at + whole)
    if shift == 0:
        while i < last:
            out[i] = (table[raw[j]] - zero) * scale
            i, j = i + _ONE, j + _ONE
    elif shift == 1:
        while i < last:
            b = np.uint64(raw[j]) << _ONE
            out[i] = (table[b] - zero) * scale
            out[i + _ONE] = (table[b + _ONE] - zero) * scale
            i, j = i + np.uint64(2), j + _ONE
    else:
        while i < last:
            b = np.uint64(raw[j]) << np.uint64(2)
            for k in range(4):
                out[i + np.uint64(k)] = (table[b + np.uint64(k)] - zero) * scale
            i, j = i + np.uint64(4), j + _ONE
    for left in range(whole, end - at):
        out[np.uint64(at + left)] = (number_of(raw, code + left, shift, table) - zero) * scale


@kernel(
    "u1[::1]", "f4[::1]", "i8", "f4[:,::1]", "f4[:,::1]", "i4[::1]", "i8", "i8", "i8", "i8",
    "i8", "i8", "i8", "i8", "i8", "i8", "i8", "f4[::1]",
)  # fmt: skip
def dequantise_rows(
    raw: NDArray[np.uint8],
    table: NDArray[np.float32],
    shift: int,
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32],
    groups: NDArray[np.int32],
    across: int,
    rows: int,
    down: int,
    lines: int,
    at: int,
    stride: int,
    skip: int,
    held: int,
    row: int,
    column: int,
    columns: int,
    out: NDArray[np.float32],
) -> None:
    """Decode a rectangle of matrices, one below the other, whose codes are stored row after row.

    Args:
        raw: memory that holds the codes.
        table: for each byte its numbers, one, two (`shift` 1) or four (`shift` 2).
        shift: see `table`.
        scales: some lines of the grid of scales.
        zeros: the same lines of zeros; no line where there are none.
        groups: column of the grid for each column of the matrices; empty where `across` tells it.
        across, down: columns and rows that share a scale.
        rows: of a matrix.
        lines: of the grid, for a matrix.
        at: byte of `raw` where the rectangle's codes begin.
        stride: bytes from one row's codes to the next one's.
        skip: codes at the begin of each row's that are not wanted.
        held: line of the grid that `scales` begins with.
        row, column: where the rectangle begins, rows counted over all matrices.
        columns: of the rectangle.
        out: its entries, row after row.
    """
    zero = np.float32(0)
    for n in range(out.shape[0] // columns):
        line = (row + n) // rows * lines + (row + n) % rows // down - held
        code, first = ((at + n * stride) << shift) + skip, n * columns
        if groups.shape[0]:
            for c in range(columns):
                cell = groups[column + c]
                if zeros.shape[0]:
                    zero = zeros[line, cell]
                number = number_of(raw, code + c, shift, table)
                out[first + c] = (number - zero) * scales[line, cell]
            continue
        begin = 0
        while begin < columns:
            cell = (column + begin) // across
            end = min((cell + 1) * across - column, columns)
            if zeros.shape[0]:
                zero = zeros[line, cell]
            run_of_codes(
                raw, code + begin, table, shift, scales[line, cell], zero,
                out, first + begin, first + end,
            )  # fmt: skip
            begin = end


@kernel(
    "u1[:,:,::1]", "u1[:,::1]", "f4[::1]", "f4[::1]", "u1[:,::1]", "f4[::1]",
    "i8", "i8", "i8", "f4[::1]",
)  # fmt: skip
def dequantise_columns(
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    table: NDArray[np.float32],
    powers: NDArray[np.float32],
    bytes_: NDArray[np.uint8],
    factors: NDArray[np.float32],
    row: int,
    column: int,
    columns: int,
    out: NDArray[np.float32],
) -> None:
    """Decode a rectangle of a matrix whose codes are stored column after column.

    Args:
        codes: (columns, blocks of 32 rows, 16 bytes) of the whole matrix, two codes in a byte.
        scales: (columns, blocks).
        table: two numbers for each byte.
        powers: what each scale stands for.
        bytes_: scratch, 16 x `STRIP`.
        factors: scratch, `STRIP`.
        row, column: where the rectangle begins.
        columns: of the rectangle.
        out: its entries, row after row.
    """
    last = row + out.shape[0] // columns
    for begin in range(0, columns, STRIP):
        end = np.uint64(min(STRIP, columns - begin))
        for block in range(row // GROUP, -(-last // GROUP)):
            # The columns' bytes lie a power of two apart and push one another out of the cache.
            c = np.uint64(0)
            while c < end:
                place = np.uint64(column + begin) + c
                turned = codes[place, np.uint64(block)]
                for k in range(GROUP // 2):
                    bytes_[np.uint64(k), c] = turned[np.uint64(k)]
                factors[c] = powers[scales[place, np.uint64(block)]]
                c += _ONE
            for k in range(GROUP // 2):
                r = block * GROUP + 2 * k
                at = np.uint64((r - row) * columns + begin)
                pairs, c = bytes_[k], np.uint64(0)
                if row <= r and r + 1 < last:
                    below = at + np.uint64(columns)
                    while c < end:
                        b = np.uint64(pairs[c]) << _ONE
                        out[at + c] = table[b] * factors[c]
                        out[below + c] = table[b + _ONE] * factors[c]
                        c += _ONE
                elif row <= r < last or row <= r + 1 < last:
                    odd = np.uint64(0) if row <= r else _ONE
                    at += odd * np.uint64(columns)
                    while c < end:
                        b = np.uint64(pairs[c]) << _ONE
                        out[at + c] = table[b + odd] * factors[c]
                        c += _ONE
