"""Sums in fp64 over sixteen lanes, in vectors: numba leaves such loops entry by entry.

Entry j goes to lane j % 16, lanes are added in order; see `sums`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import Emitted, inlined

LANES: Final = 16


def _summed(term: Callable[[Any, Any, Any], Any], *, wide: bool = False) -> Any:
    """Return the sum over lanes of what `term` makes of one vector of `a` and one of `b`.

    These are fp32 entries, or `wide` ones in fp64.
    """
    from llvmlite import ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic

    singles = ir.VectorType(ir.FloatType(), LANES)
    doubles = ir.VectorType(ir.DoubleType(), LANES)
    entries, size = (doubles, 8) if wide else (singles, 4)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = [
            builder.bitcast(
                context.make_array(kind)(context, builder, value).data, entries.as_pointer()
            )
            for kind, value in zip(signature.args[:2], args[:2], strict=True)
        ]
        lanes = cgutils.alloca_once_value(builder, ir.Constant(doubles, [0.0] * LANES))
        with cgutils.for_range(builder, args[2]) as loop:
            # The size of an entry is all that is known of where a block begins.
            parts = [builder.load(builder.gep(a, [loop.index]), align=size) for a in arrays]
            left, right = (part if wide else builder.fpext(part, doubles) for part in parts)
            builder.store(builder.fadd(builder.load(lanes), term(builder, left, right)), lanes)
        total = ir.Constant(ir.DoubleType(), 0.0)
        for lane in range(LANES):
            place = ir.Constant(ir.IntType(32), lane)
            total = builder.fadd(total, builder.extract_element(builder.load(lanes), place))
        return total

    @intrinsic  # type: ignore[untyped-decorator]
    def added(context: Any, a: Any, b: Any, groups: Any) -> Any:
        return types.float64(a, b, groups), code

    def total(a: Any, b: Any, n: int) -> float:
        groups = (n + LANES - 1) // LANES
        for j in range(n, groups * LANES):
            a[j] = 0.0
            b[j] = 0.0
        return added(a, b, groups)  # type: ignore[no-any-return]

    return njit(nogil=True, error_model="numpy")(total)


def _product(builder: Any, left: Any, right: Any) -> Any:
    return builder.fmul(left, right)


def _magnitude(builder: Any, left: Any, right: Any) -> Any:
    from llvmlite import ir

    integers = ir.VectorType(ir.IntType(64), LANES)
    without_sign = ir.Constant(integers, [0x7FFFFFFFFFFFFFFF] * LANES)
    return builder.bitcast(builder.and_(builder.bitcast(left, integers), without_sign), left.type)


sum_of_products = Emitted(lambda: _summed(_product))
"""(a, b, n): the sum of a[j] b[j] for j < n; entries up to a multiple of 16 become 0."""

sum_of_magnitudes = Emitted(lambda: _summed(_magnitude))
"""(a, a, n): the sum of |a[j]| for j < n; entries up to a multiple of 16 become 0."""

sum_of_entries = Emitted(lambda: _summed(lambda builder, left, right: left))
"""(a, a, n): the sum of a[j] for j < n; entries up to a multiple of 16 become 0."""

_sum_of_pairs = Emitted(lambda: _summed(lambda builder, left, right: left, wide=True))


@inlined
def sum_of_terms(terms: NDArray[np.float64], n: int) -> float:
    """Return the sum of `terms[:n]`; entries up to a multiple of 16 become 0."""
    return np.float64(_sum_of_pairs(terms, terms, n))
