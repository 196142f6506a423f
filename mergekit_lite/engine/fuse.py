"""Computes the factors of an adapter that is merged of adapters: one row, one factor."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.engine.adapted import factors_of, sum_of_squares
from mergekit_lite.engine.low_rank import Floats
from mergekit_lite.engine.options import Contribution
from mergekit_lite.errors import DataError, Problem
from mergekit_lite.ops import registry
from mergekit_lite.ops._arithmetic import total_weight
from mergekit_lite.plan.row_kinds import Fusion
from mergekit_lite.plan.types import Job

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit_lite.engine.inputs import Readers
    from mergekit_lite.engine.lanes import Lane
    from mergekit_lite.ops._factors import Merge


def fused(
    job: Job, readers: Readers, lane: Lane, *, seed: int, layers: int, allow_nonfinite: bool
) -> tuple[NDArray[np.uint8], dict[str, Contribution]]:
    """Return the bytes of one factor of a merged adapter, and what each adapter gave to it.

    Both rows of a module compute both factors: that costs less than keeping one for the other.
    """
    import torch

    from mergekit_lite.engine.torch_row import DTYPES

    fusion = job.fusion
    if fusion is None:
        raise DataError(f"the row of `{job.name}` has no factors")
    raw: dict[str, tuple[Floats, Floats]] = {}
    parts: dict[str, Contribution] = {}
    for read in job.reads:
        if read.lora is None:
            continue
        b, a, scale = factors_of(read, readers, stored=False)
        # Factors that are added up themselves each carry half of the scale.
        root = np.sqrt(scale)
        raw[read.source] = (b * root, a * root) if fusion.method == "linear" else (b, a * scale)
        square = sum_of_squares(b, a, scale)
        if fusion.part == "B":  # counted once for both
            parts[read.source] = Contribution(1, 1, int(square != 0), square)
    broken = [name for name, pair in raw.items() if not all(np.isfinite(p).all() for p in pair)]
    if broken and not allow_nonfinite:
        hint = "fetch or train the adapter again, or pass --allow-nonfinite"
        what = "entries are NaN or infinite"
        raise DataError([Problem(what, f"{name}: {job.name}", hint) for name in broken])
    pairs = {
        name: (torch.from_numpy(b).double(), torch.from_numpy(a).double())
        for name, (b, a) in raw.items()
    }
    with lane.working():
        left, right = _merged(job, fusion, pairs, seed, layers)
    part = (left if fusion.part == "B" else right).to(DTYPES[job.dtype]).contiguous()
    if part.numel() != prod(job.shape):
        raise DataError(f"`{job.name}` came out as {list(part.shape)}, planned {list(job.shape)}")
    return part.view(torch.uint8).numpy().reshape(-1), parts


def _merged(
    job: Job, fusion: Fusion, pairs: Mapping[str, tuple[Tensor, Tensor]], seed: int, layers: int
) -> tuple[Tensor, Tensor]:
    from mergekit_lite.ops import _factors as factors

    if fusion.method in ("core_space", "knots"):
        merge = _chain(job, fusion, seed, layers)
        way = factors.core_space if fusion.method == "core_space" else factors.knots
        return way(pairs, merge, fusion.rank)
    weights = dict(
        zip([read.source for read in job.reads], _coefficients(job, fusion), strict=True)
    )
    listed = [weights[name] for name in pairs]
    if fusion.method == "linear":
        return factors.linear(list(pairs.values()), listed)
    whole = factors.cat(list(pairs.values()), listed)
    if whole[1].shape[0] == fusion.rank and fusion.method != "svd":
        return whole
    return factors.truncated(whole, fusion.rank)


def _coefficients(job: Job, fusion: Fusion) -> list[float]:
    """Return what every adapter's delta is multiplied by in a sum."""
    if fusion.method == "mean":
        return [1 / len(job.reads)] * len(job.reads)
    combine = job.steps[0]
    params = {**registry()[combine.op].defaults(), **combine.params}
    if combine.op in ("take", "passthrough"):
        return [float(params.get("scale", 1.0))] * len(job.reads)
    weights = [float(w) for w in params.get("weights") or [1.0] * len(job.reads)]
    factor = float(params["lambda"]) / (total_weight(weights) if params["normalize"] else 1.0)
    for post in job.steps[1:]:
        factor *= float({**registry()[post.op].defaults(), **post.params}["lambda"])
    return [factor * weight for weight in weights]


def _chain(job: Job, fusion: Fusion, seed: int, layers: int) -> Merge:
    """Return the recipe's steps as a function of small matrices by expert."""
    import torch

    from mergekit_lite.ops._chain import merge

    def merged(cores: Mapping[str, Tensor]) -> Tensor:
        shape = next(iter(cores.values())).shape
        # An adapter that leaves the module alone still counts in means and votes.
        inputs = {
            read.source: cores[read.source].float() if read.source in cores else torch.zeros(shape)
            for read in job.reads
        }
        zeros = torch.zeros(shape)
        return merge(
            zeros, inputs, job.steps, name=fusion.weight, seed=seed, layer=job.layer, layers=layers
        )

    return merged
