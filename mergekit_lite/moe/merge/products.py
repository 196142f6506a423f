"""Products of matrices, the same digits whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.moe.fewer.statistics import Numbers


@contextmanager
def one_thread() -> Iterator[None]:
    """Multiply on one thread: products of several have other digits with their number."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def product(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Return left @ right, in the dtype of both."""
    import torch

    parts = [torch.from_numpy(np.ascontiguousarray(part)) for part in (left, right)]
    return np.asarray((parts[0] @ parts[1]).numpy())


def ridge(inputs: Numbers, wanted: Numbers, penalty: float) -> Numbers:
    """Return the x that makes |inputs x - wanted|^2 + p |x|^2 least, in fp64.

    Args:
        inputs: (tokens, d).
        wanted: (tokens, columns).
        penalty: p as a part of the mean sum of squares of a column of the inputs.
    """
    import torch

    gram = torch.from_numpy(product(inputs.T, inputs))
    held = penalty * max(float(gram.trace()) / len(gram), 1e-300)
    gram.diagonal().add_(held)
    other = torch.from_numpy(product(inputs.T, wanted))
    return np.asarray(torch.cholesky_solve(other, torch.linalg.cholesky(gram)).numpy())
