"""Rows of one plan after another into memory, from inputs that are opened once."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.memory import keep_for, tile_for
from mergekit_lite.engine.options import Options
from mergekit_lite.engine.shard import Worker
from mergekit_lite.engine.supplies import supply_of
from mergekit_lite.engine.sweep import answers_of
from mergekit_lite.engine.tiles import as_float32
from mergekit_lite.errors import RecipeError
from mergekit_lite.plan.types import Job, Plan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mergekit_lite.sources import Model


class InMemory:
    """Computes the tensors that runs of plans would write, without writing them.

    All plans have the same inputs.

    Args:
        models: the inputs by name.
        options: how to run.
    """

    def __init__(self, models: Mapping[str, Model], options: Options) -> None:
        self._models, self._options = models, options
        self._readers: Readers | None = None
        self._worker: Worker | None = None
        self._jobs: dict[str, Job] = {}

    def take(self, plan: Plan) -> None:
        """Make a plan the one whose tensors are asked for; sweep the inputs where it must be.

        Raises:
            DataError: an input holds NaN or infinity.
            RecipeError: the plan is no plain table of rows of its inputs.
        """
        require_plain(plan)
        if self._readers is None:
            self._readers = Readers(self._models, plan.row_maps)
        options = self._options
        self._worker = Worker(
            plan,
            self._readers,
            options,
            tile=tile_for(plan, options),
            keep=keep_for(plan, options),
            known=answers_of(plan, self._models, options),
            stop=threading.Event(),
        )
        self._jobs = {job.name: job for job in plan.jobs}

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return an output tensor of the plan, rounded to its dtype, in fp32 and in its shape.

        Raises:
            DataError: an input or the result holds NaN or infinity.
        """
        job = self._jobs[name]
        return as_float32(self.stored(job), job.dtype).reshape(job.shape)

    def stored(self, job: Job) -> NDArray[np.uint8]:
        """Return the bytes of a row, as a run writes them."""
        if self._worker is None or self._readers is None:
            raise RuntimeError("no plan has been taken")
        size = prod(job.shape)
        out = np.empty(size * DTYPE_BYTES[job.dtype], np.uint8)
        if job.kind == "copy":
            supply = supply_of(job.reads[0], job, self._readers)
            if supply is None:
                raise RecipeError("there is nothing to copy", job.name)
            supply.fill(0, size, out)
            return out

        def write(part: NDArray[np.uint8], offset: int) -> None:
            out[offset : offset + part.nbytes] = part

        self._worker.merge(job, write)
        return out

    def close(self) -> None:
        """Close the weight files."""
        if self._readers is not None:
            self._readers.close()


def require_plain(plan: Plan) -> None:
    """Check that a plan's rows can be computed one by one, with nothing made before them.

    Raises:
        RecipeError: it makes an adapter, another vocabulary, a routed model, or writes a stage.
    """
    reasons = {
        "its result is an adapter, not a model": bool(plan.adapter),
        "its result has another vocabulary than its base": bool(plan.tokenizer or plan.row_maps),
        "its result is a routed model, of which parts are made before": bool(plan.moe),
        "it writes a stage before it is used": bool(plan.written),
    }
    wrong = [reason for reason, holds in reasons.items() if holds]
    if wrong:
        hint = "search the part that merges, as a recipe of its own"
        raise RecipeError(f"it cannot be merged into memory: {wrong[0]}", hint=hint)
