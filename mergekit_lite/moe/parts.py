"""What rows of routed models are made of: matrices of experts, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mergekit_lite.plan.types import Block, Job, Order, Read, Step

COPIED = Step("passthrough", {"source": None, "scale": 1.0, "weights": [1.0]})
Matrix = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """A matrix of an expert: the row that would give a whole one, and what of it is wanted.

    Attributes:
        job: the row.
        shape: rows and columns in the end.
        scale: factor of its entries.
        first: row and column of the whole at which it begins.
        order: puts the whole in another order first.
    """

    job: Job
    shape: Matrix
    scale: float = 1.0
    first: Matrix = (0, 0)
    order: Order | None = None


def scaled(job: Job, scale: float) -> Job:
    """Return a row times a factor."""
    params = dict((job.steps or (COPIED,))[0].params)
    step = Step("passthrough", {**params, "scale": params["scale"] * scale})
    return replace(job, kind="merge", steps=(step,))


def zeros(job: Job) -> Job:
    """Return a row of zeros, of which nothing is read."""
    rows, columns = job.shape[0], job.shape[1]
    nothing = Read("", "", zero=True)
    block = Block(nothing, (0, columns), (0, 0), (rows, columns))
    return replace(
        job, kind="merge", reads=(Read("", "", blocks=(block,)),), base=None, steps=(COPIED,)
    )
