"""Compiles kernels to machine code with numba, in a process of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from mergekit_lite.kernels import native
from mergekit_lite.kernels._jit import Kernel, find, kernel_folder

FOREIGN: Final = {"NRT_MemInfo_call_dtor", "memcpy", "memset"}
"""Functions that are there when a run loads a kernel; numba's own, to allocate, say, are not."""


def compile_named(folder: str, makers: list[list[str]]) -> None:
    """Compile kernels, named as `Kernel.maker` does, into the folder that a run looks in."""
    import llvmlite.binding as llvm

    if kernel_folder().name != Path(folder).name:
        raise SystemExit("mergekit-lite itself has been changed since the run began; run again")

    # Loops over many inputs compare all their addresses first; by default LLVM gives up at eight.
    llvm.set_option("", "-runtime-memory-check-threshold=128")
    for maker in makers:
        kernel = find(tuple(maker))
        native.save(Path(folder, kernel.file.name), *machine_code(kernel))


def machine_code(kernel: Kernel) -> tuple[str, bytes]:
    """Return the name of a kernel's function and an object file for this machine."""
    from numba import njit
    from numba.core.sigutils import normalize_signature

    dispatcher = njit(
        nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
    )(kernel.function)
    arguments = normalize_signature(f"({', '.join(kernel.types)})")[0]
    dispatcher.compile(arguments)
    compiled = dispatcher.overloads[tuple(arguments)]
    foreign = set(re.findall(r"^declare [^@]*@\"?([\w.]+)", compiled.library.get_llvm_str(), re.M))
    if unknown := {name for name in foreign - FOREIGN if not name.startswith("llvm.")}:
        raise SystemExit(f"kernel {kernel.maker} calls {', '.join(sorted(unknown))}")
    return compiled.fndesc.llvm_func_name, compiled.library._get_compiled_object()
