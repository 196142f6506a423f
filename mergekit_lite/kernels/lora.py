"""A tile of a low-rank delta `scale * B @ A`, one fixed order of additions for every device.

Blocks of four rows and sixteen columns stay in registers while all ranks are added to them: left
to the compiler, every few ranks would be a pass over the result. Products are rounded before they
are added, so that a block, a row alone and an entry alone give the same bits.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import Emitted, inlined, kernel

COLUMNS: Final = 16
"""Columns of a strip: all ranks of it lie side by side, and in L1 for ranks of some hundreds."""
ROWS: Final = 4
"""Rows of a block; a single row is taken as many strips at a time."""


def strips(right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the (rank x width) factor cut into strips of `COLUMNS`, one after the other.

    The last one ends in zeros.
    """
    rank, width = right.shape
    whole, rest = divmod(width, COLUMNS)
    out = np.zeros((whole + (rest > 0), rank, COLUMNS), np.float32)
    cut = right[:, : whole * COLUMNS].reshape(rank, whole, COLUMNS)
    out[:whole] = cut.transpose(1, 0, 2)
    if rest:
        out[whole, :, :rest] = right[:, whole * COLUMNS :]
    return out.reshape(len(out) * rank, COLUMNS)


def _block(rows: int, number: int) -> Any:
    """Return what multiplies so many rows by so many strips, all sums in registers."""
    from llvmlite import ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic

    single, word = ir.FloatType(), ir.IntType(64)
    vector = ir.VectorType(single, COLUMNS)
    zeros = ir.Constant(vector, [0.0] * COLUMNS)
    same = ir.Constant(ir.VectorType(ir.IntType(32), COLUMNS), [0] * COLUMNS)

    def spread(builder: Any, value: Any) -> Any:
        first = builder.insert_element(zeros, value, ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, zeros, same)

    def place(builder: Any, start: Any, steps: Any) -> Any:
        return builder.bitcast(builder.gep(start, [steps]), vector.as_pointer())

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        left, right, out = (
            context.make_array(kind)(context, builder, value).data
            for kind, value in zip(signature.args[:3], args[:3], strict=True)
        )
        row, strip, at, width, ranks, scale = args[3:]

        def times(a: Any, b: Any, more: Any = 0) -> Any:
            more = ir.Constant(word, more) if isinstance(more, int) else more
            return builder.add(builder.mul(a, b), more)

        def number_of(value: int) -> Any:
            return ir.Constant(word, value)

        factors = [times(builder.add(row, number_of(r)), ranks) for r in range(rows)]
        begins = [
            builder.mul(times(builder.add(strip, number_of(s)), ranks), number_of(COLUMNS))
            for s in range(number)
        ]
        sums = [[cgutils.alloca_once_value(builder, zeros) for _ in begins] for _ in factors]
        with cgutils.for_range(builder, ranks) as loop:
            parts = [
                builder.load(
                    place(builder, right, times(loop.index, number_of(COLUMNS), begin)), align=4
                )
                for begin in begins
            ]
            for begin, own in zip(factors, sums, strict=True):
                factor = builder.load(builder.gep(left, [builder.add(begin, loop.index)]), align=4)
                each = spread(builder, factor)
                for total, part in zip(own, parts, strict=True):
                    more = builder.fmul(each, part)
                    builder.store(builder.fadd(builder.load(total), more), total)
        by = spread(builder, scale)
        for r, own in enumerate(sums):
            for s, total in enumerate(own):
                steps = times(number_of(r), width, builder.add(at, number_of(s * COLUMNS)))
                result = builder.fmul(builder.load(total), by)
                builder.store(result, place(builder, out, steps), align=4)
        return number_of(0)

    @intrinsic  # type: ignore[untyped-decorator]
    def multiplied(
        context: Any, a: Any, b: Any, c: Any, row: Any, strip: Any, at: Any, width: Any,
        ranks: Any, scale: Any,
    ) -> Any:  # fmt: skip
        return types.int64(a, b, c, *[types.int64] * 5, types.float32), code

    def multiply(
        left: Any, right: Any, out: Any, row: int, strip: int, at: int, width: int, ranks: int,
        scale: Any,
    ) -> int:  # fmt: skip
        return multiplied(left, right, out, row, strip, at, width, ranks, scale)  # type: ignore[no-any-return]

    return njit(nogil=True, error_model="numpy")(multiply)


rows_by_strip = Emitted(lambda: _block(ROWS, 1))
"""(left, right, out, row, strip, at, width, ranks, scale): a block of rows to `out[at:]`."""
row_by_strips = Emitted(lambda: _block(1, ROWS))
"""The same of one row and of as many strips."""
row_by_strip = Emitted(lambda: _block(1, 1))
"""The same of one row and one strip."""


@inlined
def few_entries(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    scale: np.float32,
    row: int,
    begin: int,
    stop: int,
    out: NDArray[np.float32],
) -> None:
    """Write the entries of a row from column `begin` to `stop`, all of one strip, to `out`."""
    ranks, n, column = left.shape[1], stop - begin, begin % COLUMNS
    strip = right[begin // COLUMNS * ranks : (begin // COLUMNS + 1) * ranks]
    for j in range(n):
        out[j] = np.float32(0.0)
    for k in range(ranks):
        factor, part = left[row, k], strip[k, column : column + n]
        for j in range(n):
            out[j] = out[j] + factor * part[j]
    for j in range(n):
        out[j] = out[j] * scale


@inlined
def one_row(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    scale: np.float32,
    row: int,
    begin: int,
    stop: int,
    out: NDArray[np.float32],
) -> None:
    """Write the entries of a row from column `begin` to `stop` to `out`."""
    ranks, column = left.shape[1], begin
    while column < stop:
        at, strip = column - begin, column // COLUMNS
        if column % COLUMNS or column + COLUMNS > stop:
            end = min((strip + 1) * COLUMNS, stop)
            few_entries(left, right, scale, row, column, end, out[at:])
            column = end
        elif column + ROWS * COLUMNS <= stop:
            row_by_strips(left, right, out, row, strip, at, 0, ranks, scale)
            column += ROWS * COLUMNS
        else:
            row_by_strip(left, right, out, row, strip, at, 0, ranks, scale)
            column += COLUMNS


@kernel("f4[:,::1]", "f4[:,::1]", "f4", "i8", "i8", "i8", "f4[::1]")
def low_rank_tile(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    scale: np.float32,
    width: int,
    first: int,
    count: int,
    out: NDArray[np.float32],
) -> None:
    """Write entries [first, first + count) of `scale * left @ right`, row-major, to `out`.

    The right factor is that of `strips`, `width` the columns of the product. Each entry adds its
    rank products in order to zero and is multiplied by `scale` last; nothing of this depends on
    the tile.
    """
    ranks, end = left.shape[1], first + count
    begin, stop = -(-first // width), end // width
    blocks = max(stop - begin, 0) // ROWS
    whole = width // COLUMNS
    for strip in range(whole):
        for block in range(blocks):
            row = begin + ROWS * block
            at = row * width + COLUMNS * strip - first
            rows_by_strip(left, right, out, row, strip, at, width, ranks, scale)
    for row in range(first // width, -(-end // width)):
        start = max(first - row * width, 0)
        if begin <= row < begin + ROWS * blocks:
            start = whole * COLUMNS
        at = row * width + start - first
        one_row(left, right, scale, row, start, min(width, end - row * width), out[at:])
