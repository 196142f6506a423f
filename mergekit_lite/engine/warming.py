"""Compiles the kernels that a run wants before its threads call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mergekit_lite.engine.events import Event
from mergekit_lite.engine.options import Options
from mergekit_lite.kernels import enabled
from mergekit_lite.plan.types import Plan

if TYPE_CHECKING:
    from mergekit_lite.engine.shard import Emit
    from mergekit_lite.kernels._jit import Kernel
    from mergekit_lite.sources import Model

_COMPILING = "compiling {} kernel{} for this merge, once (longer the busier the machine is)"


def compile_for(plan: Plan, models: Mapping[str, Model], options: Options, emit: Emit) -> None:
    """Compile what the rows of a plan want and is not compiled yet."""
    if not enabled() or not any(job.kind == "merge" for job in plan.jobs):
        return
    from mergekit_lite.engine.kinds import wanted_kernels
    from mergekit_lite.kernels.sha256 import compress_two, is_possible

    wanted = wanted_kernels(plan, models)
    if is_possible():
        wanted.append(compress_two)  # for the checksums of later runs' inputs
    compile_missing(wanted, options, emit)


def compile_missing(kernels: Sequence[Kernel], options: Options, emit: Emit) -> None:
    """Compile those kernels that are not compiled yet, and say so."""
    from mergekit_lite.kernels.warm import compile_kernels, missing

    if new := missing(kernels):
        emit(Event("note", text=_COMPILING.format(len(new), "s" if len(new) > 1 else "")))
        compile_kernels(new, together=options.max_memory is None)
