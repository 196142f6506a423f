"""Compiles kernels ahead of a run, once, in processes of their own.

There it needs none of the run's memory, uses two cores, and ends at once on Ctrl-C.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from mergekit_lite.errors import MergekitLiteError
from mergekit_lite.kernels._jit import Kernel

PROCESSES = 2
_CHILD = (
    "import json, sys; path, folder, makers = map(json.loads, sys.argv[1:]); sys.path[:] = path;"
    "from mergekit_lite.kernels.compiler import compile_named; compile_named(folder, makers)"
)


def missing(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Return those that have not been compiled for this machine yet."""
    return [kernel for kernel in kernels if not kernel.is_compiled]


def compile_kernels(kernels: Sequence[Kernel], *, together: bool = True) -> None:
    """Compile what is not compiled yet and wait for it.

    Args:
        kernels: what is needed.
        together: compile in two processes at the same time, not in one.

    Raises:
        MergekitLiteError: the compiler failed.
    """
    wanted = missing(kernels)
    processes = PROCESSES if together else 1
    groups = [wanted[start::processes] for start in range(processes)]
    running: list[subprocess.Popen[str]] = []
    try:
        for group in filter(None, groups):
            running.append(_start(group))
        for process in running:
            _check(process, process.communicate()[1])
    finally:
        for process in running:
            with process:  # which closes its pipe and waits
                process.kill()


def _start(kernels: Sequence[Kernel]) -> subprocess.Popen[str]:
    given = [sys.path, str(kernels[0].file.parent), [kernel.maker for kernel in kernels]]
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, *map(json.dumps, given)],
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
            hint="set MERGEKIT_LITE_CACHE to a folder that can be written if that is what it lacks,"
            " or MERGEKIT_LITE_JIT=0 to run without kernels, several times slower",
        )
