"""Entries that are marked, a byte each, found eight at a time: most words of marks are zero."""

from __future__ import annotations

import numpy as np

from mergekit_lite.kernels._jit import inlined

_BYTES = np.uint64(0x0001020304050607)


@inlined
def first_mark(marks: np.uint64) -> tuple[np.uint64, int]:
    """Return the lowest mark of a word that has one, and which byte it is."""
    lowest = np.uint64(marks & (~marks + np.uint64(1)))
    # The number of its byte: shifted so far, the byte on top is just that.
    return lowest, int(np.uint64(lowest * _BYTES) >> np.uint64(56))
