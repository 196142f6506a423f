"""Words of 64 bits: instructions and loads that numba has no expression for."""

from __future__ import annotations

from typing import Any

from mergekit_lite.kernels._jit import Emitted


def _counted() -> Any:
    from llvmlite import ir
    from numba import njit, types
    from numba.extending import intrinsic

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    @intrinsic  # type: ignore[untyped-decorator]
    def emitted(context: Any, word: Any) -> Any:
        return types.uint64(types.uint64), code

    def zeros(word: Any) -> Any:
        return emitted(word)

    return njit(nogil=True, error_model="numpy")(zeros)


def _loaded() -> Any:
    from llvmlite import ir
    from numba import njit, types
    from numba.extending import intrinsic

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        place = builder.gep(array.data, [args[1]])
        return builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)

    @intrinsic  # type: ignore[untyped-decorator]
    def emitted(context: Any, raw: Any, byte: Any) -> Any:
        return types.uint64(raw, types.uint64), code

    def word(raw: Any, byte: Any) -> Any:
        return emitted(raw, byte)

    return njit(nogil=True, error_model="numpy")(word)


trailing_zeros = Emitted(_counted)
"""(word): how many zeros a word other than 0 has below its lowest one."""

word_from = Emitted(_loaded)
"""(raw, byte): the eight bytes from one on as a word, the first lowest."""
