"""The fused CPU loops: numba twins of the torch chain in `mergekit_lite.ops`.

Importing this package does not import numba: runs that only move bytes never need it.
"""

from __future__ import annotations

import os


def enabled() -> bool:
    """Whether compiled kernels may be used (`MERGEKIT_LITE_JIT=0` turns them off)."""
    return os.environ.get("MERGEKIT_LITE_JIT", "1") != "0"
