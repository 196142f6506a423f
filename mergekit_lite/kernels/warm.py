"""Compiles all kernels ahead of a run, once, in processes of their own.

There it needs none of the run's memory, uses two cores, and ends at once on Ctrl-C.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numba
from numba.core.sigutils import normalize_signature

from mergekit_lite.errors import MergekitLiteError
from mergekit_lite.kernels._jit import KERNELS

GROUPS = (("tile",), ("order", "sums", "lora"))
"""Modules whose kernels one process compiles; the groups take about as long as each other."""
READY = "ready"

_CHILD = (
    "import json, sys; path, modules = map(json.loads, sys.argv[1:]); sys.path[:] = path;"
    "from mergekit_lite.kernels.warm import compile_modules; compile_modules(modules)"
)


def compiled_before() -> bool:
    """Whether all kernels have been compiled for this machine, so that a run only loads them."""
    return (Path(numba.config.CACHE_DIR) / READY).exists()


def compile_modules(modules: list[str]) -> None:
    """Compile the kernels of some modules of this package into numba's cache."""
    from importlib import import_module

    for module in modules:
        import_module(f"mergekit_lite.kernels.{module}")
    for dispatcher, types in KERNELS:
        if dispatcher.py_func.__module__.rpartition(".")[2] in modules:
            dispatcher.compile(normalize_signature(types)[0])


def compile_all(*, together: bool = True) -> None:
    """Compile what is not compiled yet and wait for it.

    Args:
        together: compile the groups at the same time, not one after the other.

    Raises:
        MergekitLiteError: the compiler failed.
    """
    waiting = list(GROUPS)
    running: list[subprocess.Popen[str]] = []
    try:
        while waiting or running:
            while waiting and (together or not running):
                running.append(_start(waiting.pop(0)))
            process = running[0]
            said = process.communicate()[1]
            running.remove(process)
            _check(process, said)
    finally:
        for process in running:
            process.kill()
            process.communicate()
    Path(numba.config.CACHE_DIR, READY).touch()


def _start(modules: tuple[str, ...]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, json.dumps(sys.path), json.dumps(modules)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Not in this process's group: Ctrl-C goes to the run, which then ends its children.
        start_new_session=True,
    )


def _check(process: subprocess.Popen[str], said: str) -> None:
    if process.returncode:
        last = said.strip().splitlines()[-1:] or [f"it ended with code {process.returncode}"]
        raise MergekitLiteError(
            f"the kernels could not be compiled: {last[0]}",
            hint="set MERGEKIT_LITE_JIT=0 to run without them, several times slower",
        )
