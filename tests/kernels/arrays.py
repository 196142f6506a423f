"""What several tests of the kernels need: bit patterns, and fp32 data that is hard to rank."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

Floats = NDArray[np.float32]

AWKWARD = (0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1e-45, -1e-45, 1e-38, 3.0e38, 0.1, -0.1)


def awkward(least: int = 1, most: int = 40) -> st.SearchStrategy[list[float]]:
    """Lists of fp32 numbers with many equal magnitudes, both zeros and subnormals."""
    some = st.one_of(
        st.sampled_from(AWKWARD), st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
    few = st.sampled_from(AWKWARD[:6])
    return st.one_of(
        st.lists(few, min_size=least, max_size=most), st.lists(some, min_size=least, max_size=most)
    )


def patterns(values: object) -> NDArray[np.uint32]:
    """Return the bits of fp32 numbers, in an array or a tensor, where -0.0 is not 0.0."""
    if isinstance(values, torch.Tensor):
        values = values.contiguous().flatten().numpy()
    return np.asarray(values, np.float32).reshape(-1).view(np.uint32)


def same(left: object, right: object) -> bool:
    """Return whether two sets of fp32 numbers are equal bit for bit, all NaN being one."""
    a, b = patterns(left), patterns(right)
    nan_a, nan_b = (np.isnan(x.view(np.float32)) for x in (a, b))
    return len(a) == len(b) and bool(((a == b) | (nan_a & nan_b)).all())
