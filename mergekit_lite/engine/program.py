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

from mergekit_lite.engine.terms import Post, Transform, post_of, transform_of
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
from mergekit_lite.kernels.steps import (
    ROW_KEPT,
)
from mergekit_lite.ops import registry
from mergekit_lite.ops._arithmetic import single, total_weight
from mergekit_lite.ops._place import Cut, Sums
from mergekit_lite.ops._statistics import EVERY
from mergekit_lite.ops.combine.consensus import limits
from mergekit_lite.ops.transform.dare import rescale_factor
from mergekit_lite.ops.transform.deviation import bounds
from mergekit_lite.plan.fused import is_known
from mergekit_lite.plan.types import Job, Step

_AGGREGATES = {"mean": MEAN, "sum": SUM, "max": MAX}
_LIMITS = {
    "magmax": (FARTHEST, "", ""),
    "ram": (ACTIVE_MEAN, "epsilon", ""),
    "consensus": (CLAIMED, "", "at_least"),
    "nearswap": (CLIPPED, "t", ""),
}
"""Op -> its combine, the parameter that is its limit, and the one that is a number of experts."""


@dataclass
class Program:
    """A row's chain as flat arrays.

    Attributes:
        kinds, floats, ints: transforms by (expert, position); ints hold up to 6 numbers each.
        wanted: (expert, position) -> ranks whose cuts must be found before it can run.
        keep_ties: (expert, position) of cuts that keep every tied entry.
        strict: (expert, position) of cuts that keep no tied entry.
        of_model: (expert, position) of cuts that come from the sweep over the whole model.
        shares: (expert, position) -> share of the sum of squares, of cuts whose rank follows from
            it.
        by_l1: (expert, position) -> density of drops whose factor must be found first.
        by_spread: (expert, position) -> how many standard deviations, of cuts whose bounds must be
            found first.
        combine, weights, divisor, options: the combine and its parameters; `divisor` is the limit
            of those that have one for all experts. The last two options are before which post
            what few experts claim is dropped (-1: none), and how many must.
        posts: factors of the posts, in order.
        limits: every expert's own limit, of a combine that has them, and of a post.
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
    shares: dict[tuple[int, int], float] = field(default_factory=dict)
    by_l1: dict[tuple[int, int], float] = field(default_factory=dict)
    by_spread: dict[tuple[int, int], float] = field(default_factory=dict)
    limits: NDArray[np.float32] = field(default_factory=lambda: np.zeros((2, 0), np.float32))
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
        return found or bool(self.wanted or self.by_l1 or self.by_spread)

    def waiting(self) -> dict[int, int]:
        """Return the first transform of each expert that waits for a statistic.

        Only the first, because the later ones see its result.
        """
        first: dict[int, int] = {}
        for expert, position in sorted([*self.wanted, *self.by_l1, *self.by_spread]):
            first.setdefault(expert, position)
        return first

    def set_factor(
        self, expert: int, position: int, before: float, after: float, marks: int = -1
    ) -> None:
        """Enter the factor of a drop from the sums of magnitudes before and after it.

        Where what it keeps is marked, at byte `marks` of the row's memory, it draws no more.
        """
        density = self.by_l1.pop((expert, position))
        factor = rescale_factor(density, "l1", Sums(absolute=(before, after)))
        self.floats[expert, position] = factor
        if marks >= 0 and np.isfinite(factor):  # else a zero that is kept is not one
            self.kinds[expert, position] = ROW_KEPT
            self.ints[expert, position, 0] = marks

    def set_answer(self, expert: int, position: int, answer: Sequence[Cut] | Sums) -> None:
        """Enter what a transform asked of the whole model."""
        if isinstance(answer, Sums):
            self.set_bounds(expert, position, answer)
        else:
            self.set_cuts(expert, position, answer)

    def set_bounds(self, expert: int, position: int, sums: Sums) -> None:
        """Enter the mean and the distance from it of a cut by deviation."""
        mean, spread = bounds(sums)
        limit = self.by_spread.pop((expert, position)) * spread
        ends = np.array([single(mean), single(limit)], np.float32)
        self.ints[expert, position, :2] = ends.view(np.uint32)
        self.of_model.discard((expert, position))

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
        self.shares.pop((expert, position), None)
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
    posts: list[Post] = []
    for step in job.steps:
        spec = specs[step.op]
        params = spec.params_for({**spec.defaults(), **step.params}, job.shape)
        if spec.kind == "transform":
            rows[step.expert].append(transform_of(spec, params, job, step.expert, seed, size))
        elif spec.kind == "post":
            posts.append(post_of(spec, params, list(rows)))
    return _assemble(job, combine, list(rows.values()), posts)


def _assemble(
    job: Job,
    combine: Step,
    rows: list[list[Transform]],
    posts: list[Post],
) -> Program:
    spec = registry()[combine.op]
    params = {**spec.defaults(), **combine.params}
    experts, depth = len(job.reads), max((len(row) for row in rows), default=0)
    weights = np.array(params.get("weights") or [1.0] * experts, np.float32)
    divisor, options, kind = np.float32(0.0), np.zeros(6, np.int64), WEIGHTED_SUM
    gram, each, finder, columns, own_width = None, None, "", 0, 0
    if combine.op in ("linear", "task_arithmetic"):
        if params["normalize"]:
            divisor = np.float32(total_weight(weights.tolist()))
        if combine.op == "task_arithmetic":
            posts = [Post(float(params["lambda"])), *posts]
    elif combine.op == "sign_consensus":
        kind = VOTE
        options[:4] = (
            params["elect"] == "count",
            _AGGREGATES[params["agg"]],
            params["zero_sign"] == "plus",
            params["divisor"] == "signed",
        )
    elif combine.op in _LIMITS:
        kind, limit, least = _LIMITS[combine.op]
        divisor = np.float32(params[limit] if limit else 0.0)
        options[1] = params[least] if least else 0
        posts = [Post(float(params.get("lambda", 1.0))), *posts]
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
        posts=np.array([post.factor for post in posts], np.float32),
        limits=_limits(job, params, posts, options),
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
            if step.share is not None and step.ranks:
                program.shares[e, t] = step.share
            if step.deviations is not None:
                program.by_spread[e, t] = step.deviations
    return program


def _limits(
    job: Job, params: Mapping[str, Any], posts: Sequence[Post], options: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return every expert's limits for the combine and for a post, which `options` then name."""
    names = [read.source for read in job.reads]
    found = np.zeros((2, len(names)), np.float32)
    if "mask_lambda" in params:
        found[0] = limits(params["mask_lambda"], names)
    options[4] = -1
    for at, post in enumerate(posts):
        if post.limits:
            found[1], options[4:] = post.limits, (at, post.at_least)
    return found


def set_gram(program: Program, sums: Sums) -> None:
    """Turn inner products into the weights of the sum that the combine is."""
    if program.gram is not None:
        program.weights = np.array(program.gram(sums), np.float32)
