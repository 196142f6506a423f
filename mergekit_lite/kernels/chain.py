"""The fused loop written out for one kind of row: every entry passes once, all in registers.

`tile` runs any chain, step after step over blocks. Most large rows are of few kinds, so a loop
for just such a row is composed from the functions of `entry` and compiled on first use; it gives
the same bits in a third of the time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from mergekit_lite.kernels import entry
from mergekit_lite.kernels._jit import Inlined, Kernel, inlined
from mergekit_lite.kernels.codec import LARGEST, WIDTHS, non_finite_stored
from mergekit_lite.kernels.combine import (
    ACTIVE_MEAN,
    CLAIMED,
    CLIPPED,
    FARTHEST,
    MAX,
    MEAN,
    SCALED_MEAN,
    VOTE,
    WEIGHTED_SUM,
)
from mergekit_lite.kernels.steps import BAND, CUT, DARE, FAR, IDENTITY

MOST_INPUTS: Final = 12
"""More would not find room in registers, and take long to compile."""
_ARGUMENTS: Final = (
    "raw, at, floats, ints, weights, divisor, posts, limits, out, bad, norms, first, count"
)
PIECE: Final = 1 << 13
"""Entries whose squares are added up in fp32 before they go to fp64."""

KNOWN: Final = frozenset((IDENTITY, CUT, BAND, DARE, FAR))
"""Transforms of single entries."""

_TYPES: Final = (
    "u1[::1]", "i8[::1]", "f4[:,::1]", "i8[:,:,::1]", "f4[::1]", "f4", "f4[::1]",
    "f4[:,::1]", "u1[::1]", "i8[::1]", "f8[::1]", "i8", "i8",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """All that the code of a row's loop depends on; numbers are given when it is called.

    Attributes:
        codes: storage code of the base and of every expert, -1 where nothing is read.
        deltas: which experts are deltas already.
        weight_space: whether experts enter as whole weights.
        kinds: transforms of every expert.
        combine: a kind of combine.
        by_count, aggregate, zero_plus, signed: options of a vote; `aggregate` is also how many must
            claim an entry.
        divided: whether a weighted sum is divided.
        posts: how many factors follow.
        out_code: storage code of the output.
        mask: before which of these factors what few experts claim is dropped; -1: nothing is.
        least: how many must claim an entry then.
    """

    codes: tuple[int, ...]
    deltas: tuple[bool, ...]
    weight_space: bool
    kinds: tuple[tuple[int, ...], ...]
    combine: int
    by_count: bool
    aggregate: int
    zero_plus: bool
    signed: bool
    divided: bool
    posts: int
    out_code: int
    mask: int = -1
    least: int = 0

    @property
    def is_known(self) -> bool:
        """Whether a loop can be written for it."""
        kinds = {kind for row in self.kinds for kind in row}
        # Non-finite weights are found by what comes out, which a transform might hide.
        hidden = self.weight_space and bool(kinds)
        written = self.combine in _COMBINES
        return written and len(self.codes) <= MOST_INPUTS and kinds <= KNOWN and not hidden


@lru_cache(maxsize=256)
def kernel_for(kind: Kind) -> Kernel:
    """Return the kernel for a kind of row.

    Its arguments are those of `tile.merge_tile` by the same names: raw, at, floats, ints,
    weights, divisor, posts, limits, out, bad, norms, first, count.
    """
    return merge_chain(json.dumps(asdict(kind), sort_keys=True))


def merge_chain(text: str) -> Kernel:
    """Return the kernel of a kind that is given as JSON."""
    given = json.loads(text)
    for key in ("codes", "deltas"):
        given[key] = tuple(given[key])
    given["kinds"] = tuple(map(tuple, given["kinds"]))
    made = source(Kind(**given))
    function = compiled_from(made, "merge", text, {"non_finite_stored": non_finite_stored})
    return Kernel(function, _TYPES, ("chain", "merge_chain", text))


def compiled_from(
    text: str, name: str, title: str, more: Mapping[str, Inlined]
) -> Callable[..., None]:
    """Return the function `name` of a text that uses what `entry` has, and `more`."""
    space: dict[str, Any] = {**_NAMES, **more}
    exec(compile(text, f"<chain {title}>", "exec"), space)
    function: Callable[..., None] = space[name]
    return function


@inlined
def piece_end(flat: int, last: int, most: int) -> int:
    """Return where a piece of at most so many entries ends: drawn numbers change at 2**32."""
    return min(last, flat + most, ((flat >> 32) + 1) << 32)


@inlined
def until_tie(end: int, flat: int, until: int) -> int:
    """Return a nearer end of a piece where a cut's last tie lies in it."""
    return until if flat < until < end else end


_NAMES: Final[dict[str, Any]] = {
    "np": np,
    "piece_end": piece_end,
    "until_tie": until_tie,
    "ZERO": entry.ZERO,
    "ONE": entry.ONE,
    **{name: value for name, value in vars(entry).items() if isinstance(value, Inlined)},
}


def source(kind: Kind) -> str:
    """Return the text of the loop for a kind of row."""
    before: list[str] = []  # of a piece, whose limits are constant
    lines: list[str] = []  # for an entry
    experts = range(1, len(kind.codes))
    for i, code in enumerate(kind.codes):
        if code >= 0:
            width = WIDTHS[code]
            begin = f"at[{i}] + {width} * done"
            before.append(f"h{i} = raw[{begin} : {begin} + {width} * n]{_view(code)}")
    lines.append(f"b = {load(kind.codes[0], 0)}")
    for e in experts:
        lines.append(f"x{e} = {_input(kind, e)}")
        if kind.mask >= 0:
            lines.append(f"r{e} = x{e}")
            before.append(f"mask{e} = limits[1, {e - 1}]")
        if kind.combine == CLAIMED:
            before.append(f"limit{e} = limits[0, {e - 1}]")
        if not kind.weight_space:
            before.append(f"q{e} = ZERO")
            lines.append(f"q{e} = plus_square(q{e}, x{e})")
        for t, step in enumerate(kind.kinds[e - 1]):
            transform(str(e), f"{e - 1}, {t}", t, step, before, lines)
        before.append(f"w{e} = weights[{e - 1}]")
    lines += _COMBINES[kind.combine](kind, experts)
    for k in range(kind.posts):
        if k == kind.mask:
            claims = " + ".join(f"claim(r{e}, y, mask{e})" for e in experts)
            lines.append(f"y = y if {claims} >= np.float32({kind.least}) else ZERO")
        before.append(f"post{k} = posts[{k}]")
        lines.append(f"y = y * post{k}")
    if not kind.weight_space:
        lines.append("y = added(b, y)")
    width = WIDTHS[kind.out_code]
    begin = f"{width} * done"
    before.append(f"o = out[{begin} : {begin} + {width} * n]{_view(kind.out_code)}")
    before.append("top = np.uint32(0)")
    lines.append("top = max(top, magnitude(y))")
    lines.append(f"o[i] = {entry.STORES[kind.out_code]}(y)")
    squares = "" if kind.weight_space else "".join(f" + q{e}" for e in experts)
    after = [f"norms[{e}] += np.float64(q{e})" for e in experts if not kind.weight_space]
    # The usual case is told by figures that are there anyway; only else is every entry looked at.
    after.append(
        f"if top >= np.uint32({LARGEST[kind.out_code]}) or not np.isfinite(ZERO{squares}):"
    )
    for i, code in enumerate(kind.codes):
        if code >= 0:
            begin = f"at[{i}] + {WIDTHS[code]} * done"
            after.append(f"    bad[{i}] += non_finite_stored(raw, {begin}, {code}, n)")
    begin = f"{width} * done"
    after.append(f"    bad[-1] += non_finite_stored(out, {begin}, {kind.out_code}, n)")
    return "\n".join([
        f"def merge({_ARGUMENTS}):",
        "    done = 0",
        "    while done < count:",
        "        flat = first + done",
        f"        end = piece_end(flat, first + count, {PIECE})",
        *indented(2, tie_lines(kind.kinds, [str(e - 1) for e in experts])),
        "        n = end - flat",
        *indented(2, before),
        "        for i in range(n):",
        *indented(3, lines),
        *indented(2, after),
        "        done += n",
    ])  # fmt: skip


def indented(depth: int, lines: list[str]) -> list[str]:
    """Return lines of text, four spaces to the right for each depth."""
    return ["    " * depth + line for line in lines]


def _view(code: int) -> str:
    return f".view(np.{entry.STORED[code]})"


def tie_lines(rows: Sequence[Sequence[int]], inputs: Sequence[str]) -> list[str]:
    """Return the lines that end a piece at every cut's last tie; `inputs` index the experts."""
    number = {CUT: 1, BAND: 2}
    return [
        f"end = until_tie(end, flat, ints[{e}, {t}, {2 * c + 1}])"
        for e, row in zip(inputs, rows, strict=True)
        for t, step in enumerate(row)
        for c in range(number.get(step, 0))
    ]


def load(code: int, i: int) -> str:
    """Return the text for entry `i` of an input, 0 where nothing is read."""
    return f"{entry.LOADS[code]}(h{i}[i])" if code >= 0 else "ZERO"


def _input(kind: Kind, e: int) -> str:
    if kind.codes[e] < 0:
        return "b" if kind.weight_space else "ZERO"
    value = load(kind.codes[e], e)
    if kind.weight_space:
        return f"b + {value}" if kind.deltas[e - 1] else value
    return value if kind.deltas[e - 1] else f"{value} - b"


def transform(e: str, place: str, t: int, step: int, before: list[str], lines: list[str]) -> None:
    """Append the text of transform `t` of input `e`, whose numbers lie at a place of `ints`."""
    given, here = f"ints[{place}]", f"{e}_{t}"
    if step == CUT:
        before.append(f"low{here} = limit_of({given}[0], {given}[1], flat)")
        lines.append(f"x{e} = cut(x{e}, low{here})")
    elif step == BAND:
        before.append(f"high{here} = limit_of({given}[0], {given}[1], flat)")
        before.append(f"low{here} = limit_of({given}[2], {given}[3], flat)")
        lines.append(f"x{e} = band(x{e}, high{here}, low{here})")
    elif step == DARE:
        before.append(f"counter{here} = np.uint32((flat + {given}[0]) & 0xFFFFFFFF)")
        salt = f"{given}[1] ^ ((flat >> 32) * 0x9E3779B9)"
        before.append(f"salt{here} = np.uint32(({salt}) & 0xFFFFFFFF)")
        before.append(f"limit{here} = np.uint32(min({given}[2], 0xFFFFFFFF))")
        before.append(f"factor{here} = floats[{place}]")
        count = f"np.uint32(counter{here} + np.uint32(i))"
        lines.append(f"x{e} = drop(x{e}, {count}, salt{here}, limit{here}, factor{here})")
    elif step == FAR:
        before.append(f"mean{here} = number_of({given}[0])")
        before.append(f"spread{here} = number_of({given}[1])")
        lines.append(f"x{e} = far(x{e}, mean{here}, spread{here})")


def _weighted(kind: Kind, experts: range) -> list[str]:
    lines = ["y = w1 * x1"] + [f"y = y + w{e} * x{e}" for e in experts[1:]]
    return [*lines, "y = y / divisor"] if kind.divided else lines


def _vote(kind: Kind, experts: range) -> list[str]:
    lines = [f"p{e} = w{e} * x{e}" for e in experts]
    ballots = [f"sign_of(p{e})" if kind.by_count else f"p{e}" for e in experts]
    lines.append(f"s = elected({' + '.join(ballots)}, {'ONE' if kind.zero_plus else 'ZERO'})")
    lines += [f"k{e} = p{e} * s > ZERO" for e in experts]
    if kind.aggregate == MAX:
        return lines + ["y = ZERO"] + [f"y = larger(y, p{e}, k{e})" for e in experts]
    lines.append("y = " + " + ".join(f"(p{e} if k{e} else ZERO)" for e in experts))
    if kind.aggregate == MEAN:
        part = "w{e}" if kind.signed else "abs(w{e})"
        mass = " + ".join(f"({part.format(e=e)} if k{e} else ZERO)" for e in experts)
        lines += [f"m = {mass}", "y = mean(y, m)"]
    return lines


def _largest(kind: Kind, experts: range) -> list[str]:
    return ["y = w1 * x1"] + [f"y = later(y, w{e} * x{e})" for e in experts[1:]]


def _active_mean(kind: Kind, experts: range) -> list[str]:
    lines = [f"k{e} = abs(x{e}) > divisor" for e in experts]
    total = " + ".join(f"(x{e} if k{e} else ZERO)" for e in experts)
    active = " + ".join(f"(ONE if k{e} else ZERO)" for e in experts)
    return [*lines, f"y = (ZERO + {total}) / max({active}, ONE)"]


def _scaled_mean(kind: Kind, experts: range) -> list[str]:
    lines = [f"k{e} = abs(x{e}) > divisor" for e in experts]
    lines.append("m = " + " + ".join(f"(ONE if k{e} else ZERO)" for e in experts))
    lines += [f"v{e} = x{e} * w{e} if m == ONE else x{e}" for e in experts]
    total = " + ".join(f"(v{e} if k{e} else ZERO)" for e in experts)
    return [*lines, f"y = (ZERO + {total}) / max(m, ONE)"]


def _claimed(kind: Kind, experts: range) -> list[str]:
    lines = [f"p{e} = w{e} * x{e}" for e in experts]
    lines.append("s = " + " + ".join(f"p{e}" for e in experts))
    claims = " + ".join(f"claim(p{e}, s, limit{e})" for e in experts)
    return [*lines, f"y = s if {claims} >= np.float32({kind.aggregate}) else ZERO"]


def _clipped(kind: Kind, experts: range) -> list[str]:
    return ["y = clip(x1, divisor)"]


_COMBINES: Final[dict[int, Callable[[Kind, range], list[str]]]] = {
    WEIGHTED_SUM: _weighted,
    VOTE: _vote,
    FARTHEST: _largest,
    ACTIVE_MEAN: _active_mean,
    SCALED_MEAN: _scaled_mean,
    CLAIMED: _claimed,
    CLIPPED: _clipped,
}
