"""Finds the base's tensors that an adapter of bare parameters, or of single tokens, is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from mergekit_lite.checkpoint._types import TensorInfo
from mergekit_lite.checkpoint.adapter import Adapter, LoraFactors, Unplaced

_TRANSPOSED = frozenset({"gpt_oss", "openai_privacy_filter"})
"""Model types whose fused experts are stored (experts x in x out)."""
_ALTERNATING = frozenset({"gpt_oss"})
"""Those of them whose gate and up outputs take turns."""
# A fused tensor in memory is one tensor for each expert in most files: which, in which order.
_SINGLE: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
    "up_proj": (("up_proj",),),
}
_PARALLEL = {"gate_up_proj": "input_linear.weight", "down_proj": "output_linear.weight"}
_OTHER_HOMES = (("mlp.experts", "block_sparse_moe.experts"), ("feed_forward.experts", "experts"))


@dataclass(frozen=True)
class _Fit:
    """One way to read a pair of factors: what it gives for which tensors of the base."""

    parameter: str
    factors: Mapping[str, LoraFactors]
    transpose: bool = False
    square: bool = False


def on_base(adapter: Adapter, base: Mapping[str, TensorInfo], model_type: str = "") -> Adapter:
    """Return the adapter with a base tensor's name for everything that it holds.

    Factors of bare parameters (`target_parameters`) are told apart by their shapes. What finds no
    tensor keeps a name that the base lacks, and is reported as such.

    Args:
        adapter: as read from its file.
        base: the base's tensors.
        model_type: of the base's config; it tells how square fused tensors are stored.
    """
    factors = dict(adapter.factors)
    shapes = dict(adapter.shapes)
    for name, one in adapter.factors.items():
        if one.rows and name in base:
            shapes[name] = _with_rows(adapter, one, base[name].shape)
    by_module: dict[str, list[Unplaced]] = {}
    for pair in adapter.unplaced:
        by_module.setdefault(pair.module, []).append(pair)
    for pairs in by_module.values():
        for fit in _placed(adapter, pairs, base, model_type):
            factors |= fit.factors
            shapes |= {name: base[name].shape for name in fit.factors if name in base}
    return replace(adapter, factors=factors, shapes=shapes, unplaced=())


def _with_rows(adapter: Adapter, one: LoraFactors, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the least shape with all the rows that are replaced, which fits if that is `shape`."""
    width = adapter.header.tensors[one.b].shape[1]
    rows = max(shape[0] if shape else 0, 1 + max(one.rows, default=0))
    return (rows, width)


def _placed(
    adapter: Adapter, pairs: list[Unplaced], base: Mapping[str, TensorInfo], model_type: str
) -> list[_Fit]:
    """Return one fit for each pair of a module, where there is just one that all can share."""
    by_turns = model_type in _ALTERNATING
    choices = {pair: list(_fits(adapter, pair, base, by_turns)) for pair in pairs}
    fits = [fit for found in choices.values() for fit in found]
    turned = {fit.transpose for fit in fits if not fit.square}
    single = any(one.expert >= 0 for fit in fits for one in fit.factors.values())
    way = turned.pop() if len(turned) == 1 else model_type in _TRANSPOSED and not single
    chosen: list[_Fit] = []
    # Those with the fewest choices first: they take a parameter away from the others.
    for pair in sorted(pairs, key=lambda p: len({fit.parameter for fit in choices[p]})):
        taken = {fit.parameter for fit in chosen}
        left = [
            fit
            for fit in choices[pair]
            if fit.parameter not in taken and (not fit.square or fit.transpose == way)
        ]
        chosen.append(left[0] if len(left) == 1 else _nowhere(pair))
    return chosen


def _nowhere(pair: Unplaced) -> _Fit:
    names = "|".join(name for name, _, _ in pair.parameters)
    scale = pair.parameters[0][2]
    return _Fit("", {f"{pair.module}.{names}": LoraFactors(pair.a, pair.b, scale)})


def _fits(
    adapter: Adapter, pair: Unplaced, base: Mapping[str, TensorInfo], by_turns: bool
) -> Iterable[_Fit]:
    tensors = adapter.header.tensors
    a, b = tensors[pair.a].shape, tensors[pair.b].shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        return
    known = [one for one in pair.parameters if _named(pair.module, one[0], base)]
    # A plain layer whose path happens to end like a target.
    for parameter, rank, scale in known or [("weight", a[0], pair.parameters[0][2])]:
        if a[0] % rank:
            continue
        one = LoraFactors(pair.a, pair.b, scale, stack=a[0] // rank)
        name = _fused(pair.module, parameter, base)
        shape = base[name].shape if name in base else ()
        if len(shape) == 2 and one.stack == 1 and shape == (b[0], a[1]):
            yield _Fit(parameter, {name: replace(one, stack=0)})
        elif len(shape) == 3 and shape[0] == one.stack:
            for transpose in (False, True):
                if shape[1:] == ((a[1], b[0]) if transpose else (b[0], a[1])):
                    square = a[1] == b[0]
                    yield _Fit(
                        parameter, {name: replace(one, transpose=transpose)}, transpose, square
                    )
        elif not shape:
            single = _for_single(pair.module, parameter, one, base, by_turns)
            square = a[1] == b[0]
            for transpose, size in ((False, (b[0], a[1])), (True, (a[1], b[0]))):
                if single and _cover(single, base, size):
                    turned = {n: replace(f, transpose=transpose) for n, f in single.items()}
                    yield _Fit(parameter, turned, transpose, square)


def _fused(module: str, parameter: str, base: Mapping[str, TensorInfo]) -> str:
    """Return the base's name for a parameter: that in memory, or what a family stores it as."""
    name = f"{module}.{parameter}"
    if name in base or parameter not in _PARALLEL:
        return name
    stored = f"{module.removesuffix('.experts')}.{_PARALLEL[parameter]}"
    return stored if stored in base else name


def _named(module: str, parameter: str, base: Mapping[str, TensorInfo]) -> bool:
    return _fused(module, parameter, base) in base or any(
        f"{home}.0.{part}.weight" in base
        for home in _homes(module)
        for parts in _SINGLE.get(parameter, ())
        for part in parts
    )


def _homes(module: str) -> list[str]:
    others = [module.replace(old, new) for old, new in _OTHER_HOMES if module.endswith(old)]
    return [module, *others]


def _for_single(
    module: str,
    parameter: str,
    one: LoraFactors,
    base: Mapping[str, TensorInfo],
    by_turns: bool,
) -> dict[str, LoraFactors]:
    """Return the factors of each expert's own tensors in a file that keeps experts apart."""
    for home in _homes(module):
        for parts in _SINGLE.get(parameter, ()):
            names = [[f"{home}.{e}.{part}.weight" for part in parts] for e in range(one.stack)]
            if f"{home}.{one.stack}.{parts[0]}.weight" in base:
                continue
            if all(name in base for row in names for name in row):
                found = {}
                for expert, row in enumerate(names):
                    first = 0
                    for number, name in enumerate(row):
                        at, step = (number, len(row)) if by_turns else (first, 1)
                        found[name] = replace(one, expert=expert, first=at, step=step)
                        first += base[name].shape[0]
                return found
    return {}


def _cover(
    single: Mapping[str, LoraFactors], base: Mapping[str, TensorInfo], size: tuple[int, int]
) -> bool:
    """Return whether the parts of every expert together have the size of its factors' product."""
    rows: dict[int, int] = {}
    for name, one in single.items():
        shape = base[name].shape
        if len(shape) != 2 or shape[1] != size[1]:
            return False
        rows[one.expert] = rows.get(one.expert, 0) + shape[0]
    return all(count == size[0] for count in rows.values())
