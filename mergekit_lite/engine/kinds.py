"""Which kernels the rows of a plan want, so that they can be compiled before the first row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from mergekit_lite.engine.dequantised import kernel_of
from mergekit_lite.engine.joined import JoinedRead, joined
from mergekit_lite.engine.packed import unpacking_kernels
from mergekit_lite.engine.program import Program, compile_job
from mergekit_lite.engine.supplies import form_of
from mergekit_lite.kernels._jit import Kernel
from mergekit_lite.kernels.chain import Kind, kernel_for
from mergekit_lite.kernels.chain_ranks import Ranked, sample_for, scan_for
from mergekit_lite.kernels.chain_sums import kept_for
from mergekit_lite.kernels.changes import changes_tile
from mergekit_lite.kernels.codec import CODES, F32
from mergekit_lite.kernels.combine import BY_ROW, FUSION, WEIGHTED_SUM
from mergekit_lite.kernels.fusion import divergence_tile, fusion_tile, importance_tile
from mergekit_lite.kernels.lora import low_rank_tile
from mergekit_lite.kernels.order import (
    histogram,
    magnitudes_of_tile,
    nth_equal,
    refine,
    scan_tile,
    squares,
)
from mergekit_lite.kernels.products import column_products_tile, row_products_tile
from mergekit_lite.kernels.selection_sums import selected_squares_tile, variance_tile
from mergekit_lite.kernels.steps import DARE
from mergekit_lite.kernels.sums import gram_tile, kept_tile
from mergekit_lite.kernels.tile import merge_tile
from mergekit_lite.plan.types import Job, Plan, Read

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

WORTHWHILE = 1 << 24
"""Entries of a kind of row that are worth a loop of its own, which takes seconds to compile."""
FEW = 4
"""Loops that are sooner compiled than a general kernel."""
_FOUND: Mapping[str, tuple[int, tuple[Kernel, ...]]] = {
    "sce": (1, (variance_tile, selected_squares_tile)),
    "arcee_fusion": (0, (divergence_tile, importance_tile, histogram, refine, fusion_tile)),
    "ramplus": (0, (changes_tile,)),
    "nuslerp": (0, (column_products_tile,)),
}
"""Combine -> how many cuts of derived values it asks for, and the kernels that it has for that."""
_ALL = 1 << 32  # what a random drop keeps of 32-bit numbers when it drops none


def merge_kind(job: Job, program: Program, codes: Sequence[int], deltas: Sequence[bool]) -> Kind:
    """Return a row's kind from the storage codes of its base and experts (-1: not read)."""
    by_count, aggregate, zero_plus, signed, mask, least = program.options.tolist()
    return Kind(
        codes=tuple(codes),
        deltas=tuple(map(bool, deltas[1:])),
        weight_space=program.weight_space,
        kinds=tuple(map(tuple, program.kinds.tolist())),
        combine=program.combine,
        by_count=bool(by_count),
        aggregate=aggregate,
        zero_plus=bool(zero_plus),
        signed=bool(signed),
        divided=program.combine == WEIGHTED_SUM and bool(program.divisor != 0),
        posts=len(program.posts),
        out_code=CODES[job.dtype],
        mask=mask,
        least=least,
    )


def merge_loop(
    job: Job, program: Program, codes: Sequence[int], deltas: Sequence[bool]
) -> Kernel | None:
    """Return the loop for a row's kind, or None where only the general one knows it."""
    drops = program.kinds == DARE
    if drops.any() and np.any(program.ints[drops][:, 2] >= _ALL):
        return None
    kind = merge_kind(job, program, codes, deltas)
    return kernel_for(kind) if kind.is_known else None


def ranked(
    program: Program, expert: int, position: int, codes: Sequence[int], deltas: Sequence[bool]
) -> Ranked | None:
    """Return the kind of input that a transform asks about, or None as `merge_loop` does."""
    kinds = program.kinds[expert, :position]
    drops = program.kinds[expert, : position + 1] == DARE
    if np.any(program.ints[expert, : position + 1][drops][:, 2] >= _ALL):
        return None
    kind = Ranked(
        base=codes[0],
        code=codes[1 + expert],
        is_delta=bool(deltas[1 + expert]),
        kinds=tuple(kinds.tolist()),
        ranks=len(program.wanted.get((expert, position), ())),
    )
    return kind if kind.is_known else None


def kept_loop(
    program: Program, expert: int, position: int, codes: Sequence[int], deltas: Sequence[bool]
) -> Kernel | None:
    """Return the loop that sums what a drop sees and keeps, or None as `merge_loop` does.

    It begins where a block of the sums does, which whole rows do not.
    """
    if (expert, position) not in program.by_l1:
        return None
    kind = None if program.width else ranked(program, expert, position, codes, deltas)
    return kept_for(kind) if kind else None


def wanted_kernels(plan: Plan, models: Mapping[str, Model]) -> list[Kernel]:
    """Return the kernels that running a plan calls, but for those of rare cases.

    A kind of row that is worth it has a loop of its own; all others share the general kernels.
    """
    entries: Counter[Kernel] = Counter()
    general: dict[Kernel, Kernel] = {}  # loop of a kind -> what does without it
    always: dict[Kernel, None] = {}  # in order
    for job in plan.jobs:
        job = joined(job)
        is_fused = job.kind == "merge" and job.fusion is None
        program = compile_job(job, plan.seed) if is_fused else None
        always |= dict.fromkeys(unpacking_kernels(job, models))
        if program is None:
            continue
        codes, deltas = stored(job, models)
        found: list[tuple[Kernel | None, Kernel]] = []
        if program.combine != FUSION:
            found.append((merge_loop(job, program, codes, deltas), merge_tile))
        for expert, position in program.wanted:
            kind = ranked(program, expert, position, codes, deltas)
            if (expert, position) in program.shares:
                always |= dict.fromkeys((squares, refine))
            else:
                found.append((scan_for(kind) if kind else None, scan_tile))
            found.append((sample_for(kind) if kind else None, magnitudes_of_tile))
        for expert, position in program.by_l1:
            found.append((kept_loop(program, expert, position, codes, deltas), kept_tile))
        for loop, instead in found:
            if loop is None:
                always[instead] = None
            else:
                entries[loop] += prod(job.shape)
                general[loop] = instead
        if program.by_spread.keys() - program.of_model:
            always[kept_tile] = None
        if any(_has_factors(read) for read in job.reads):
            always[low_rank_tile] = None
        if program.gram is not None:
            always[gram_tile] = None
        always |= dict.fromkeys(_found_by(program.finder))
        if program.combine == BY_ROW:
            always[row_products_tile] = None
        if program.wanted:
            always[nth_equal] = None
    small = [k for k, count in entries.items() if not k.is_compiled and count < WORTHWHILE]
    for loop in entries:
        instead = general[loop]
        # The general kernels take as long to compile as several loops.
        shared = loop in small and (instead.is_compiled or len(small) > FEW)
        always[instead if shared else loop] = None
    for model in models.values():
        for info in model.header.tensors.values():
            if info.coded is not None:
                always[kernel_of(info.coded)] = None
        if model.plan is not None:
            always |= dict.fromkeys(wanted_kernels(model.plan, model.parts))
    return list(always)


def _has_factors(read: Read) -> bool:
    return isinstance(read, JoinedRead) or bool(read.lora and not read.lora.packed)


def _found_by(finder: str) -> list[Kernel]:
    """Return the kernels that find a combine's own statistics, but for those of rare cases."""
    if not finder:
        return []
    ranks, kernels = _FOUND[finder]
    kind = Ranked(base=-1, code=F32, is_delta=True, kinds=(), ranks=ranks)
    return [*kernels, *([scan_for(kind), sample_for(kind), nth_equal] if ranks else [])]


def stored(job: Job, models: Mapping[str, Model]) -> tuple[list[int], list[bool]]:
    """Return code and form of the base and every expert, as `Row` finds them."""
    nothing = Read(source="", name="", zero=True)
    forms = [form_of(read, models) for read in (job.base or nothing, *job.reads)]
    return [CODES[dtype] if dtype else -1 for dtype, _ in forms], [delta for _, delta in forms]
