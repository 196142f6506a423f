"""Entries about which two right merges may differ: those that tie at the cut of a trim."""

from __future__ import annotations

from pathlib import Path

import torch

from mergekit_lite.ops.transform import breadcrumbs, magnitude
from mergekit_lite.plan.types import Job, Plan
from tests.checkpoints import read_weights

Weights = dict[str, torch.Tensor]


def tied(plan: Plan, models: Path) -> dict[str, torch.Tensor]:
    """Return, by output tensor, where an expert's entry is as large as the last that is kept.

    Args:
        plan: with every density resolved.
        models: folder of the models that it names.
    """
    stored = {name: read_weights(models / source.root) for name, source in plan.inputs.items()}
    return {job.name: found for job in plan.jobs if (found := _of_job(job, stored)) is not None}


def _of_job(job: Job, stored: dict[str, Weights]) -> torch.Tensor | None:
    if job.base is None:
        return None
    base = stored[job.base.source][job.base.name].double()
    found = torch.zeros(job.shape, dtype=torch.bool)
    for step in job.steps:
        ranks = {"magnitude": magnitude.ranks, "breadcrumbs": breadcrumbs.ranks}.get(step.op)
        if ranks is None:
            continue
        read = next(read for read in job.reads if read.source == step.expert)
        size = (stored[read.source][read.name].double() - base).abs()
        ordered = size.flatten().sort(descending=True).values
        for rank in ranks(step.params, size.numel()):
            if 0 < rank < size.numel() and ordered[rank - 1] == ordered[rank]:
                found |= size == ordered[rank - 1]
    return found
