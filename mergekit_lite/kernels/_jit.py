"""How every kernel here is compiled, and where the compiled code is kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba import njit

from mergekit_lite.folders import cache_folder

Function = TypeVar("Function", bound=Callable[..., Any])


def _kernel_folder() -> Path:
    """Return a folder that is named by the source of all kernels.

    numba looks only at the file of the function it caches, so a change in a helper of another
    file would leave stale machine code behind; a folder per source text cannot.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return cache_folder("kernels") / digest.hexdigest()[:16]


if not os.environ.get("NUMBA_CACHE_DIR"):
    numba.config.CACHE_DIR = str(_kernel_folder())


def kernel(function: Function) -> Function:
    """Compile without the GIL, cached on disk, with IEEE semantics (no reassociation, no FMA)."""
    return njit(nogil=True, cache=True, error_model="numpy")(function)  # type: ignore[no-any-return]


def inlined(function: Function) -> Function:
    """Compile a helper that becomes part of the kernels that call it."""
    return njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]


def reported(function: Function) -> Function:
    """Compile a helper whose sums may be reordered: for figures in reports, never for weights."""
    return njit(nogil=True, error_model="numpy", fastmath={"reassoc"})(function)  # type: ignore[no-any-return]


def compiled_before() -> bool:
    """Whether an earlier run has left compiled kernels that this one will load."""
    folder = Path(numba.config.CACHE_DIR)
    return any(folder.rglob("tile.merge_tile*.nbi"))
