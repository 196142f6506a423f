"""sha256 of two messages at the same time, with the processor's own instructions.

A round of sha256 waits for the one before it, so that one message keeps the unit for it half
idle; two together take little longer than one. The functions of `hashlib` know one at a time.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import Emitted, kernel

BLOCK: Final = 64
_MESSAGES: Final = 2
_ROUNDS: Final = 64
# FIPS 180-4, section 4.2.2: the first 32 bits of the fractional parts of the cube roots of the
# first 64 primes; section 5.3.3: those of the square roots of the first 8.
_PRIMES: Final = [p for p in range(2, 312) if all(p % q for q in range(2, p))]


def _fraction(prime: int, power: int) -> int:
    """Return 32 bits of the fractional part of a root, from integers alone."""
    scaled = prime << (32 * power)
    root: int = round(scaled ** (1 / power))
    while root**power > scaled:
        root -= 1
    while (root + 1) ** power <= scaled:
        root += 1
    return root & 0xFFFFFFFF


CONSTANTS: Final = [_fraction(prime, 3) for prime in _PRIMES[:_ROUNDS]]
START: Final = [_fraction(prime, 2) for prime in _PRIMES[:8]]
ORDER: Final = [5, 4, 1, 0, 7, 6, 3, 2]
"""Which words of a state lie where: as the instructions want them, (f e b a) and (h g d c)."""


@cache
def is_possible() -> bool:
    """Whether this processor has the instructions."""
    from llvmlite.binding import get_host_cpu_features

    return bool(get_host_cpu_features().get("sha"))


def _compression() -> Any:
    """Return the function (states, first, second, blocks) as numba has it."""
    from llvmlite import ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic

    words = ir.VectorType(ir.IntType(32), 4)
    index = ir.IntType(32)

    def constant(*values: int) -> Any:
        return ir.Constant(words, list(values))

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def native(name: str, *given: Any) -> Any:
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(words, [words] * len(given)), name
            )
            return builder.call(function, given)

        def mixed(a: Any, b: Any, *places: int) -> Any:
            mask = ir.Constant(ir.VectorType(index, 4), list(places))
            return builder.shuffle_vector(a, b, mask)

        def data(number: int, kind: Any) -> Any:
            array = context.make_array(signature.args[number])(context, builder, args[number])
            return builder.bitcast(array.data, kind.as_pointer())

        states = data(0, words)
        messages = [data(1, words), data(2, words)]
        held = [
            cgutils.alloca_once_value(
                builder, builder.load(builder.gep(states, [index(part)]), align=4)
            )
            for part in range(2 * _MESSAGES)
        ]
        with cgutils.for_range(builder, args[3]) as loop:
            before = [builder.load(part) for part in held]
            now = list(before)
            schedule = []
            first = builder.mul(loop.index, ir.Constant(loop.index.type, 4))
            for message in messages:
                places = [builder.add(first, ir.Constant(first.type, k)) for k in range(4)]
                parts = [builder.load(builder.gep(message, [at]), align=1) for at in places]
                schedule.append([native("llvm.bswap.v4i32", part) for part in parts])
            for r in range(_ROUNDS // 4):
                added = constant(*CONSTANTS[4 * r : 4 * r + 4])
                for s, w in enumerate(schedule):
                    upper, lower = 2 * s, 2 * s + 1
                    sums = builder.add(w[r % 4], added)
                    now[lower] = native("llvm.x86.sha256rnds2", now[lower], now[upper], sums)
                    sums = mixed(sums, sums, 2, 3, 0, 0)
                    now[upper] = native("llvm.x86.sha256rnds2", now[upper], now[lower], sums)
                    if r < 12:
                        old, next_, third, last = (w[(r + k) % 4] for k in range(4))
                        more = native("llvm.x86.sha256msg1", old, next_)
                        more = builder.add(more, mixed(third, last, 1, 2, 3, 4))
                        w[r % 4] = native("llvm.x86.sha256msg2", more, last)
            for part, was, after in zip(held, before, now, strict=True):
                builder.store(builder.add(was, after), part)
        for number, part in enumerate(held):
            builder.store(builder.load(part), builder.gep(states, [index(number)]), align=4)
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def emitted(context: Any, states: Any, first: Any, second: Any, blocks: Any) -> Any:
        return types.none(states, first, second, blocks), code

    def compress(states: Any, first: Any, second: Any, blocks: int) -> None:
        emitted(states, first, second, blocks)

    return njit(nogil=True, error_model="numpy")(compress)


_compress = Emitted(_compression)


@kernel("u4[:,::1]", "u1[::1]", "u1[::1]", "i8")
def compress_two(
    states: NDArray[np.uint32], first: NDArray[np.uint8], second: NDArray[np.uint8], blocks: int
) -> None:
    """Take `blocks` blocks of 64 bytes of two messages into their states (2 x 8, in `ORDER`)."""
    _compress(states, first, second, blocks)


def compress_one(states: NDArray[np.uint32], slot: int, message: NDArray[np.uint8]) -> None:
    """Take whole blocks of one message into its state; that of the other stays as it is."""
    both = states.copy()
    compress_two(both, message, message, len(message) // BLOCK)
    states[slot] = both[slot]


def new_states() -> NDArray[np.uint32]:
    """Return the states of two messages of which nothing has been seen."""
    return np.array([[START[word] for word in ORDER]] * _MESSAGES, np.uint32)


def padding(rest: bytes, nbytes: int) -> bytearray:
    """Return the last bytes of a message of `nbytes` bytes, padded to whole blocks."""
    zeros = bytes((55 - len(rest)) % BLOCK)
    return bytearray(rest + b"\x80" + zeros + struct.pack(">Q", 8 * nbytes))


def hexdigest(states: NDArray[np.uint32], slot: int) -> str:
    """Return the digest of a message that has been padded."""
    words = [0] * len(ORDER)
    for place, word in enumerate(ORDER):
        words[word] = int(states[slot, place])
    return struct.pack(">8I", *words).hex()
