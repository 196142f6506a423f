"""The sweep for exact ranks, written out for one kind of input: twin of `order.scan_tile`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import Kernel, inlined
from mergekit_lite.kernels.chain import KNOWN, compiled_from, indented, load, tie_lines, transform
from mergekit_lite.kernels.codec import WIDTHS
from mergekit_lite.kernels.entry import STORED
from mergekit_lite.kernels.order import PIVOTS, gathered

PIECE: Final = 1 << 12
"""Entries whose marks and magnitudes are kept, in L1, until those marked are collected."""

_TYPES: Final = (
    "u1[::1]", "i8[::1]", "i8", "f4[:,::1]", "i8[:,:,::1]", "i8[:,::1]", "i8[:,::1]",
    "i8[::1]", "i8[::1]", "u4[:,::1]", "i8[:,::1]", "u1[:,::1]", "i4[::1]", "i8", "i8",
    "i8[:,::1]",
)  # fmt: skip
_ARGUMENTS: Final = (
    "raw, at, e, floats, ints, brackets, pivots, above, filled, magnitudes, indices,"
    " flags, seen, first, count, equal"
)
_SAMPLE_TYPES: Final = (
    "u1[::1]", "i8[::1]", "i8", "f4[:,::1]", "i8[:,:,::1]", "i8", "i8[::1]", "u4[:,::1]"
)  # fmt: skip
_SAMPLE_ARGUMENTS: Final = "raw, at, e, floats, ints, first, begins, out"


@dataclass(frozen=True)
class Ranked:
    """All that the code of a sweep over one expert depends on.

    Attributes:
        base, code: storage codes of the base and the expert, -1 where nothing is read.
        is_delta: whether the expert is a delta already.
        kinds: transforms that precede the one that asks.
        ranks: how many ranks it asks for.
    """

    base: int
    code: int
    is_delta: bool
    kinds: tuple[int, ...]
    ranks: int

    @property
    def is_known(self) -> bool:
        """Whether a sweep can be written for it."""
        return set(self.kinds) <= KNOWN


@lru_cache(maxsize=256)
def scan_for(kind: Ranked) -> Kernel:
    """Return the kernel that scans one tile of input `e` (1 is the first expert).

    `brackets[r]` is (low, high) of rank r, low > high where none is wanted; `pivots[r]` are
    magnitudes that are counted, to `equal[r]`, and not collected (-1: none). `above` and `filled`
    have an entry, `magnitudes` and `indices` a row for each rank; `flags` (ranks x `PIECE`) and
    `seen` (`PIECE`) are memory.
    """
    return scan_chain(as_text(kind))


@lru_cache(maxsize=256)
def sample_for(kind: Ranked) -> Kernel:
    """Return the kernel that writes magnitudes of input `e` to `out` (chunks x entries).

    Chunk k has the entries from `begins[k]` on of a tile whose first flat index is `first`.
    """
    return sample_chain(as_text(replace(kind, ranks=0)))


def scan_chain(text: str) -> Kernel:
    """Return the kernel of `scan_for` for a kind that is given as JSON."""
    function = compiled_from(scan_source(from_text(text)), "scan", text, _HELPERS)
    return Kernel(function, _TYPES, ("chain_ranks", "scan_chain", text))


def sample_chain(text: str) -> Kernel:
    """Return the kernel of `sample_for` for a kind that is given as JSON."""
    function = compiled_from(sample_source(from_text(text)), "sample", text, _HELPERS)
    return Kernel(function, _SAMPLE_TYPES, ("chain_ranks", "sample_chain", text))


def as_text(kind: Ranked) -> str:
    """Return a kind as JSON."""
    return json.dumps(asdict(kind), sort_keys=True)


def from_text(text: str) -> Ranked:
    """Return the kind that `as_text` has written."""
    given = json.loads(text)
    return Ranked(**{**given, "kinds": tuple(given["kinds"])})


@inlined
def more_pivots(
    flags: NDArray[np.uint8],
    seen: NDArray[np.int32],
    n: int,
    pivots: NDArray[np.int64],
    equal: NDArray[np.int64],
) -> None:
    """Count the entries that equal any pivot but the first, which are few, and unmark them."""
    for k in range(1, PIVOTS):
        if pivots[k] >= 0:
            value, tied = np.int32(pivots[k]), np.int32(0)
            for i in range(n):
                tied = np.int32(tied + np.int32(seen[i] == value))
                flags[i] = np.uint8(flags[i] & np.uint8(seen[i] != value))
            equal[k] += np.int64(tied)


_HELPERS: Final = {"gathered": gathered, "more_pivots": more_pivots}


def input_lines(kind: Ranked) -> tuple[list[str], list[str]]:
    """Return what precedes a piece of input `e`, and what finds an entry `x1` of it."""
    before, lines = [], []
    for i, code, at in (("0", kind.base, "at[0]"), ("1", kind.code, "at[e]")):
        if code >= 0:
            width = WIDTHS[code]
            begin = f"{at} + {width} * done"
            view = f".view(np.{STORED[code]})"
            before.append(f"h{i} = raw[{begin} : {begin} + {width} * n]{view}")
    lines.append(f"b = {load(kind.base, 0)}")
    value = load(kind.code, 1)
    lines.append(f"x1 = {value}" if kind.is_delta or kind.code < 0 else f"x1 = {value} - b")
    for t, step in enumerate(kind.kinds):
        transform("1", f"e - 1, {t}", t, step, before, lines)
    return before, lines


def pieces(kind: Ranked, before: list[str], lines: list[str], after: list[str]) -> list[str]:
    """Return a loop over the pieces from entry `done` of a tile up to flat index `last`."""
    return [
        "while first + done < last:",
        "    flat = first + done",
        f"    end = piece_end(flat, last, {PIECE})",
        *indented(1, tie_lines([kind.kinds], ["e - 1"])),
        "    n = end - flat",
        *indented(1, before),
        "    for i in range(n):",
        *indented(2, lines),
        *indented(1, after),
        "    done += n",
    ]


def sample_source(kind: Ranked) -> str:
    """Return the text that writes the magnitudes of evenly long chunks."""
    before, lines = input_lines(kind)
    before.append("o = out[k, done - begins[k] : done - begins[k] + n]")
    lines.append("o[i] = magnitude(x1)")
    return "\n".join([
        f"def sample({_SAMPLE_ARGUMENTS}):",
        "    for k in range(begins.shape[0]):",
        "        done = begins[k]",
        "        last = first + done + out.shape[1]",
        *indented(2, pieces(kind, before, lines, [])),
    ])  # fmt: skip


def scan_source(kind: Ranked) -> str:
    """Return the text of the sweep for a kind of input."""
    before, lines = input_lines(kind)
    lines += ["m = np.int32(magnitude(x1))", "seen[i] = m"]
    after = []
    for r in range(kind.ranks):
        # Signed numbers, as magnitudes are below 2**31: AVX2 compares no others.
        before += [f"low{r} = np.int32(brackets[{r}, 0])", f"high{r} = np.int32(brackets[{r}, 1])"]
        before += [f"pivot{r} = np.int32(pivots[{r}, 0])", f"f{r} = flags[{r}]"]
        before += [f"over{r} = np.int32(0)", f"tied{r} = np.int32(0)"]
        lines.append(f"over{r} = np.int32(over{r} + np.int32(m > high{r}))")
        lines.append(f"tied{r} = np.int32(tied{r} + np.int32(m == pivot{r}))")
        inside = f"(m >= low{r}) & (m <= high{r}) & (m != pivot{r})"
        lines.append(f"f{r}[i] = np.uint8({inside})")
        after += [f"above[{r}] += np.int64(over{r})", f"equal[{r}, 0] += np.int64(tied{r})"]
        # Where magnitudes tie, nothing is left to collect: the usual case.
        after.append(f"if low{r} < high{r} or (low{r} == high{r} and pivot{r} != low{r}):")
        after.append(f"    more_pivots(f{r}, seen, n, pivots[{r}], equal[{r}])")
        room = f"magnitudes[{r}], indices[{r}], filled[{r}]"
        after.append(f"    filled[{r}] = gathered(f{r}, seen, n, flat, {room})")
    return "\n".join([
        f"def scan({_ARGUMENTS}):",
        "    done, last = 0, first + count",
        *indented(1, pieces(kind, before, lines, after)),
    ])  # fmt: skip
