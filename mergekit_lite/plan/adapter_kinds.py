"""What the adapters that are merged into one hold for a tensor, and whether that can be merged."""

from __future__ import annotations

from collections.abc import Sequence

from mergekit_lite.checkpoint import LoraFactors
from mergekit_lite.plan.types import Job, Read


def changing(job: Job) -> list[Read]:
    """Return the inputs of a row that change the base's tensor."""
    return [read for read in job.reads if not read.zero and read.source != "base"]


def module_of(job: Job) -> str:
    """Return the module that a row's tensor belongs to."""
    return job.name.rpartition(".")[0]


def runs_of(rows: Sequence[int]) -> tuple[tuple[int, int, int, int], ...]:
    """Return the runs of a map whose row i is stored row `rows[i]`; they are in order."""
    runs: list[tuple[int, int, int, int]] = []
    for number, row in enumerate(rows):
        if runs and runs[-1][3] + runs[-1][1] == row:
            first, count, part, stored = runs[-1]
            runs[-1] = first, count + 1, part, stored
        else:
            runs.append((number, 1, 0, row))
    return tuple(runs)


def form_of(lora: LoraFactors | None) -> str:
    """Return how an adapter says what a tensor is: as `factors`, `whole` or as rows (`tokens`)."""
    if lora is None or not (lora.a or lora.rows):
        return "whole"
    return "tokens" if lora.rows else "factors"


def is_merged(lora: LoraFactors) -> bool:
    """Return whether factors are plain, or say a bias or rows of an embedding."""
    if lora.packed:
        return False
    if lora.is_plain or lora.rows:
        return True
    return lora.is_delta and not lora.stack and not lora.a


def unmerged(lora: LoraFactors | None) -> tuple[str, str]:
    """Return what an adapter holds that no merged adapter can, and the way out."""
    extract = "merge it into the base without `output.lora`, then `mergekit-lite extract-lora`"
    if lora is None:
        return "rows of another vocabulary, which no sum of factors says", extract
    if lora.magnitude:
        return "DoRA, whose magnitudes do not add up", extract
    return f"{lora.kind}, which no sum of factors says", extract
