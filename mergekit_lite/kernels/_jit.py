"""How every kernel here is compiled, and where the compiled code is kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numba
from llvmlite.binding import get_host_cpu_name
from numba import njit

from mergekit_lite.folders import cache_folder

Function = TypeVar("Function", bound=Callable[..., Any])


def _skip_blas_probe() -> None:
    """Import numba's array library without loading SciPy's linear algebra to see if it is there.

    The probe takes a quarter of a second of every run, and no kernel here multiplies matrices.
    Where SciPy is installed its outcome is known; numba loads it when a function asks for it.
    """
    if find_spec("scipy") is None:
        return
    with suppress(ImportError, AttributeError):  # another numba: it probes as it likes
        from numba.np import linalg

        probe = linalg.ensure_blas
        linalg.ensure_blas = lambda: None
        try:
            import_module("numba.np.arraymath")
        finally:
            linalg.ensure_blas = probe


_skip_blas_probe()


def _kernel_folder() -> Path:
    """Return a folder that is named by the source of all kernels, their place and the CPU.

    numba looks only at the file of the function it caches, so a change in a helper of another
    file would leave stale machine code behind; a folder per source text cannot. Place, time and
    CPU are what numba goes by too, so that a folder which was filled once stays of use.
    """
    digest = hashlib.sha256(f"{numba.__version__} {get_host_cpu_name()}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(f"{source} {source.stat().st_mtime_ns}\n".encode())
        digest.update(source.read_bytes())
    return cache_folder("kernels") / digest.hexdigest()[:16]


if not os.environ.get("NUMBA_CACHE_DIR"):
    numba.config.CACHE_DIR = str(_kernel_folder())


KERNELS: list[tuple[Any, str]] = []
"""Every kernel that has been imported, with the types of its arguments."""


def kernel(*types: str) -> Callable[[Function], Function]:
    """Compile without the GIL, cached on disk, with IEEE semantics (no reassociation, no FMA).

    Args:
        types: of the arguments, in numba's shorthand: `u1[::1]` is a vector of bytes. They are
            what `warm` compiles ahead of a run; a call with others compiles during the run.
    """

    def compiled(function: Function) -> Function:
        dispatcher = njit(nogil=True, cache=True, error_model="numpy")(function)
        KERNELS.append((dispatcher, f"({', '.join(types)})"))
        return dispatcher  # type: ignore[no-any-return]

    return compiled


def inlined(function: Function) -> Function:
    """Compile a helper that becomes part of the kernels that call it."""
    return njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]


def reported(function: Function) -> Function:
    """Compile a helper whose sums may be reordered: for figures in reports, never for weights."""
    return njit(nogil=True, error_model="numpy", fastmath={"reassoc"})(function)  # type: ignore[no-any-return]
