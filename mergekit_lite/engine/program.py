"""Compiles a row's chain of steps into the arguments of the fused CPU kernels.

Which chains those are is known to `plan/fused.py`; the others have no program, and the torch chain
runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels.combine import (
    ACTIVE_MEAN,
    BY_COLUMN,
    BY_ROW,
    CLAIMED,
    CLIPPED,
    FARTHEST,
    FUSION,
    MAX,
    MEAN,
    SCALED_MEAN,
    SELECTED,
    SUM,
    VOTE,
    WEIGHTED_SUM,
)
from mergekit_lite.kernels.steps import BAND, CUT, DARE, IDENTITY, ROW_BAND, ROW_DROP
from mergekit_lite.ops import OpSpec, registry
from mergekit_lite.ops._arithmetic import total_weight
from mergekit_lite.ops._place import Cut, Sums, random_key
from mergekit_lite.ops._statistics import EVERY
from mergekit_lite.ops.transform.breadcrumbs import band
from mergekit_lite.ops.transform.dare import rescale_factor
from mergekit_lite.plan.fused import is_known
from mergekit_lite.plan.types import Job, Step

_AGGREGATES = {"mean": MEAN, "sum": SUM, "max": MAX}
_LIMITS = {
    "magmax": (FARTHEST, "", ""),
    "ram": (ACTIVE_MEAN, "epsilon", ""),
    "consensus": (CLAIMED, "mask_lambda", "at_least"),
    "nearswap": (CLIPPED, "t", ""),
}
"""Op -> its combine, the parameter that is its limit, and the one that is a number of experts."""

_CUTS = {"magnitude": CUT, "graft": CUT, "breadcrumbs": BAND}
"""Transforms that wait for ranks of the tensor."""


@dataclass
class Transform:
    """One transform of one expert in the kernels' terms.

    Attributes:
        kind, factor, numbers: as the kernels take them.
        ranks: whose cuts it waits for.
        keep_ties: its cuts keep every tied entry.
        strict: its cuts keep no tied entry.
        of_model: its cut comes from the sweep over the whole model.
        l1_density: density of a drop whose factor waits for sums of magnitudes.
        width: entries of a row, if it works on rows.
    """

    kind: int
    factor: float = 1.0
    numbers: list[int] = field(default_factory=list)
    ranks: tuple[int, ...] = ()
    keep_ties: bool = False
    strict: bool = False
    of_model: bool = False
    l1_density: float | None = None
    width: int = 0


@dataclass
class Program:
    """A row's chain as flat arrays.

    Attributes:
        kinds, floats, ints: transforms by (expert, position); ints hold up to 6 numbers each.
        wanted: (expert, position) -> ranks whose cuts must be found before it can run.
        keep_ties: (expert, position) of cuts that keep every tied entry.
        strict: (expert, position) of cuts that keep no tied entry.
        of_model: (expert, position) of cuts that come from the sweep over the whole model.
        by_l1: (expert, position) -> density of drops whose factor must be found first.
        combine, weights, divisor, options: the combine and its parameters; `divisor` is the limit
            of those that have one.
        posts: factors of the posts, in order.
        weight_space: whether experts enter as whole weights.
        width: entries of a row when a step works on rows, else 0.
        columns: entries of a row where the combine has factors for each column.
        gram: inner products -> weights, of a combine that needs them (`set_gram`).
        blend_each: inner products of rows or columns -> weights of each.
        finder: the combine, if it has statistics of a kind of its own (`cpu.FINDERS`).
        params: of that combine.
        asks_model: its sums come from the sweep over the whole model.
        sums: these, once they are known.
        divergences, limit: what `arcee_fusion` finds: a number for each row, and a threshold.
    """

    kinds: NDArray[np.int64]
    floats: NDArray[np.float32]
    ints: NDArray[np.int64]
    combine: int
    weights: NDArray[np.float32]
    divisor: np.float32
    options: NDArray[np.int64]
    posts: NDArray[np.float32]
    weight_space: bool
    width: int = 0
    wanted: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    keep_ties: set[tuple[int, int]] = field(default_factory=set)
    strict: set[tuple[int, int]] = field(default_factory=set)
    of_model: set[tuple[int, int]] = field(default_factory=set)
    by_l1: dict[tuple[int, int], float] = field(default_factory=dict)
    columns: int = 0
    gram: Callable[[Sums], Sequence[float]] | None = None
    blend_each: Callable[[NDArray[np.float64]], NDArray[np.float32]] | None = None
    finder: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    asks_model: bool = False
    sums: Sums | None = None
    divergences: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0, np.float64))
    limit: float = 0.0

    @property
    def is_swept(self) -> bool:
        """Whether statistics of the row must be found before its first tile."""
        found = self.gram is not None or bool(self.finder and not self.asks_model)
        return found or bool(self.wanted or self.by_l1)

    def waiting(self) -> dict[int, int]:
        """Return the first transform of each expert that waits for a statistic.

        Only the first, because the later ones see its result.
        """
        first: dict[int, int] = {}
        for expert, position in sorted([*self.wanted, *self.by_l1]):
            first.setdefault(expert, position)
        return first

    def set_factor(self, expert: int, position: int, before: float, after: float) -> None:
        """Enter the factor of a drop from the sums of magnitudes before and after it."""
        density = self.by_l1.pop((expert, position))
        sums = Sums(absolute=(before, after))
        self.floats[expert, position] = rescale_factor(density, "l1", sums)

    def set_cuts(self, expert: int, position: int, cuts: Sequence[Cut]) -> None:
        """Enter the cuts that transform `position` of an expert asked for."""
        every = (expert, position) in self.keep_ties
        none = (expert, position) in self.strict
        numbers = []
        for cut in cuts:
            until = EVERY if every and cut.until else cut.until
            numbers += [threshold_bits(cut), 0 if none else until]
        self.ints[expert, position, : len(numbers)] = numbers
        self.wanted.pop((expert, position), None)
        self.of_model.discard((expert, position))


def threshold_bits(cut: Cut) -> int:
    """Return the magnitude bits of a cut's threshold."""
    return int(np.float32(cut.threshold).view(np.uint32))


def compile_job(job: Job, seed: int) -> Program | None:
    """Return the program of a row, or None when only the torch chain can run it."""
    if not is_known(job):
        return None
    specs = registry()
    size = prod(job.shape)
    rows: dict[str, list[Transform]] = {read.source: [] for read in job.reads}
    (combine,) = (step for step in job.steps if specs[step.op].kind == "combine")
    posts: list[float] = []
    for step in job.steps:
        spec = specs[step.op]
        params = spec.params_for({**spec.defaults(), **step.params}, job.shape)
        if spec.kind == "transform":
            rows[step.expert].append(_transform(spec, params, job, step.expert, seed, size))
        elif spec.kind == "post":
            posts.append(float(params["lambda"]))
    return _assemble(job, combine, list(rows.values()), posts)


def _transform(
    spec: OpSpec, params: Mapping[str, Any], job: Job, expert: str, seed: int, size: int
) -> Transform:
    """Return one transform in the kernels' terms."""
    density = float(params.get("density") or 0.0)
    if spec.name == "dare":
        key = random_key(seed, spec.name, expert, job.name)
        numbers = [key & 0xFFFFFFFF, key >> 32, round(density * 2**32)]
        if params["rescale"] == "l1" and density < 1:
            return Transform(DARE, numbers=numbers, l1_density=density)
        return Transform(DARE, rescale_factor(density, params["rescale"], None), numbers)
    if spec.name == "magprune" and density < 1:
        return _row_drop(params, job, expert, seed)
    if density >= 1 and params.get("count") is None:
        return Transform(IDENTITY)
    if spec.reach_for(params) == "row":
        width = job.shape[-1] if job.shape else 1
        top, last = band(density, float(params["gamma"]), width)
        return Transform(ROW_BAND, numbers=[top, last - top], width=width)
    ranks = () if spec.needs.of_model(params) else spec.needs.ranks(params, size)
    return Transform(
        _CUTS[spec.name],
        ranks=tuple(ranks),
        keep_ties=spec.needs.keeps_ties(params),
        strict=spec.name == "graft",
        of_model=spec.needs.of_model(params),
    )


def _row_drop(params: Mapping[str, Any], job: Job, expert: str, seed: int) -> Transform:
    """Return a drop by rank; its chances travel as the bits of fp64 numbers."""
    density, epsilon = float(params["density"]), float(params["epsilon"])
    width = job.shape[-1] if job.shape else 1
    ends = (density - epsilon, 2.0 * epsilon) if width > 1 else (density, 0.0)
    least, spread = np.array(ends, np.float64).view(np.int64).tolist()
    key = random_key(seed, "magprune", expert, job.name)
    rescale = params["rescale"]
    numbers = [key & 0xFFFFFFFF, key >> 32, least, spread, int(rescale == "inv_prob")]
    by_l1 = density if rescale == "l1" else None
    return Transform(ROW_DROP, numbers=numbers, width=width, l1_density=by_l1)


def _assemble(
    job: Job,
    combine: Step,
    rows: list[list[Transform]],
    posts: list[float],
) -> Program:
    spec = registry()[combine.op]
    params = {**spec.defaults(), **combine.params}
    experts, depth = len(job.reads), max((len(row) for row in rows), default=0)
    weights = np.array(params.get("weights") or [1.0] * experts, np.float32)
    divisor, options, kind = np.float32(0.0), np.zeros(4, np.int64), WEIGHTED_SUM
    gram, each, finder, columns, own_width = None, None, "", 0, 0
    if combine.op in ("linear", "task_arithmetic"):
        if params["normalize"]:
            divisor = np.float32(total_weight(weights.tolist()))
        if combine.op == "task_arithmetic":
            posts = [float(params["lambda"]), *posts]
    elif combine.op == "sign_consensus":
        kind = VOTE
        options[:] = (
            params["elect"] == "count",
            _AGGREGATES[params["agg"]],
            params["zero_sign"] == "plus",
            params["divisor"] == "signed",
        )
    elif combine.op in _LIMITS:
        kind, limit, least = _LIMITS[combine.op]
        divisor = np.float32(params[limit] if limit else 0.0)
        options[1] = params[least] if least else 0
        posts = [float(params.get("lambda", 1.0)), *posts]
    elif combine.op in ("take", "passthrough"):
        weights = np.array([params.get("scale", 1.0)], np.float32)
    elif spec.blend is not None and all(
        needs.asked(params, prod(job.shape)) for needs in spec.statistics
    ):
        gram = partial(spec.blend, params, weights.tolist())
    elif spec.blend_each is not None:
        each = partial(spec.blend_each, params, weights.tolist())
        if spec.reach_for(params) == "row" or len(job.shape) < 2:
            kind, own_width = BY_ROW, job.shape[-1] if job.shape else 1
        else:
            kind, finder, columns = BY_COLUMN, combine.op, prod(job.shape[1:])
    elif combine.op == "sce":
        kind, finder = SELECTED, combine.op
        options[2] = params["merge_masked"]
    elif combine.op == "arcee_fusion":
        kind, finder, own_width = FUSION, combine.op, job.shape[-1] if job.shape else 1
    elif combine.op == "ramplus":
        kind, finder = SCALED_MEAN, combine.op
        divisor = np.float32(params["epsilon"])
    else:
        raise KeyError(f"`{combine.op}` is said to be known to the kernels")
    steps = [step for row in rows for step in row]
    width = max((step.width for step in steps), default=own_width)
    program = Program(
        kinds=np.zeros((experts, depth), np.int64),
        floats=np.ones((experts, depth), np.float32),
        ints=np.zeros((experts, depth, 6), np.int64),
        combine=kind,
        weights=weights,
        divisor=divisor,
        options=options,
        posts=np.array(posts, np.float32),
        weight_space=spec.space_for(params) == "weight",
        width=width,
        columns=columns,
        gram=gram,
        blend_each=each,
        finder=finder,
        params=params,
        asks_model=bool(finder) and any(needs.of_model(params) for needs in spec.statistics),
    )
    for e, row in enumerate(rows):
        for t, step in enumerate(row):
            program.kinds[e, t] = step.kind
            program.floats[e, t] = step.factor
            program.ints[e, t, : len(step.numbers)] = step.numbers
            if step.ranks:
                program.wanted[e, t] = step.ranks
            if step.keep_ties:
                program.keep_ties.add((e, t))
            if step.strict:
                program.strict.add((e, t))
            if step.of_model:
                program.of_model.add((e, t))
            if step.l1_density is not None:
                program.by_l1[e, t] = step.l1_density
    return program


def set_gram(program: Program, sums: Sums) -> None:
    """Turn inner products into the weights of the sum that the combine is."""
    if program.gram is not None:
        program.weights = np.array(program.gram(sums), np.float32)
