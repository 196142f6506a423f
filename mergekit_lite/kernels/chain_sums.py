"""The sweep for a random drop's factor, written out for one kind of input: `sums.kept_tile`."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from mergekit_lite.kernels._jit import Kernel
from mergekit_lite.kernels.chain import compiled_from, indented, transform
from mergekit_lite.kernels.chain_ranks import (
    Ranked,
    as_text,
    from_text,
    input_lines,
    pieces,
)
from mergekit_lite.kernels.lanes import sum_of_magnitudes
from mergekit_lite.kernels.steps import DARE
from mergekit_lite.kernels.sums import SUM_BLOCK

_TYPES: Final = (
    "u1[::1]", "i8[::1]", "i8", "f4[:,::1]", "i8[:,:,::1]", "f4[:,::1]", "i8", "i8", "f8[:,::1]",
)  # fmt: skip
_ARGUMENTS: Final = "raw, at, e, floats, ints, work, first, count, absolute"
_HELPERS: Final = {"sum_of_magnitudes": sum_of_magnitudes}


@lru_cache(maxsize=256)
def kept_for(kind: Ranked) -> Kernel:
    """Return the kernel that sums the magnitudes which the drop after `kind.kinds` sees and keeps.

    It takes one tile of input `e` (1 is the first expert), which starts at a multiple of 4096;
    row b of `absolute` takes the two sums of block b. The first two rows of `work` are memory.
    """
    return kept_chain(as_text(kind))


def kept_chain(text: str) -> Kernel:
    """Return the kernel of `kept_for` for a kind that is given as JSON."""
    function = compiled_from(kept_source(from_text(text)), "kept", text, _HELPERS)
    return Kernel(function, _TYPES, ("chain_sums", "kept_chain", text))


def kept_source(kind: Ranked) -> str:
    """Return the text of the sweep for a kind of input."""
    before, lines = input_lines(kind)
    for name in ("seen", "kept"):
        before.append(f"{name}_here = {name}[done - begin : done - begin + n]")
    lines.append("seen_here[i] = x1")
    # Its factor is 1 as long as the one that these sums are for is not known.
    transform("1", f"e - 1, {len(kind.kinds)}", len(kind.kinds), DARE, before, lines)
    lines.append("kept_here[i] = x1")
    return "\n".join([
        f"def kept({_ARGUMENTS}):",
        "    seen, kept = work[0], work[1]",
        f"    for block in range((count + {SUM_BLOCK - 1}) // {SUM_BLOCK}):",
        f"        begin = {SUM_BLOCK} * block",
        f"        done, last = begin, first + min(count, begin + {SUM_BLOCK})",
        *indented(2, pieces(kind, before, lines, [])),
        "        absolute[block, 0] = sum_of_magnitudes(seen, seen, done - begin)",
        "        absolute[block, 1] = sum_of_magnitudes(kept, kept, done - begin)",
    ])  # fmt: skip
