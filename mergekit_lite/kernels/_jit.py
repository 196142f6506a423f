"""How every kernel here is compiled and called, and where the compiled code is kept.

A kernel is written as a function that numba compiles, in a process of its own (`warm`), to a
file of machine code. A run loads that file with llvmlite alone: numba takes a second to import.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from mergekit_lite.errors import MergekitLiteError
from mergekit_lite.folders import cache_folder

KERNELS: list[Kernel] = []
"""Every kernel with a name of its own that has been imported."""

_ENTRIES: Final = {
    "b1": (np.dtype(np.bool_), bool, ctypes.c_bool),
    "u1": (np.dtype(np.uint8), int, ctypes.c_uint8),
    "i4": (np.dtype(np.int32), int, ctypes.c_int32),
    "u4": (np.dtype(np.uint32), int, ctypes.c_uint32),
    "u8": (np.dtype(np.uint64), int, ctypes.c_uint64),
    "i8": (np.dtype(np.int64), int, ctypes.c_int64),
    "f4": (np.dtype(np.float32), float, ctypes.c_float),
    "f8": (np.dtype(np.float64), float, ctypes.c_double),
}
"""What numba's names of types stand for: for numpy, for Python, for C."""

Form = tuple[tuple[Any, Any, Any], int]
"""One argument: its entries, as `_ENTRIES` has them, and its dimensions, 0 for a number."""


class Inlined:
    """A helper that becomes part of the kernels that call it.

    Called from Python it is compiled by itself, which tests do.

    Args:
        function: in the part of Python that numba compiles.
        reorder: its sums may be taken in any order: for counts, which are exact in any, and
            figures in reports, never for weights.
    """

    def __init__(self, function: Callable[..., Any], *, reorder: bool = False) -> None:
        self.function = function
        self.reorder = reorder

    @cached_property
    def _dispatcher(self) -> Any:
        return self._compiled()

    def _compiled(self) -> Any:
        from numba import njit

        relaxed = {"reassoc"} if self.reorder else False
        return njit(nogil=True, error_model="numpy", fastmath=relaxed)(self.function)

    @property
    def _numba_type_(self) -> Any:
        """What numba takes a global of this class for."""
        return self._dispatcher._numba_type_

    def __call__(self, *args: Any) -> Any:
        return self._dispatcher(*args)


class Emitted(Inlined):
    """A helper whose instructions are written out, for lack of a loop that compiles to them.

    Args:
        make: returns it as numba has it; numba is imported there and nowhere before.
    """

    def _compiled(self) -> Any:
        return self.function()


def inlined(function: Callable[..., Any]) -> Inlined:
    """Compile a helper that becomes part of the kernels that call it."""
    return Inlined(function)


def reported(function: Callable[..., Any]) -> Inlined:
    """Compile a helper whose sums may be reordered: for figures in reports, never for weights."""
    return Inlined(function, reorder=True)


class Kernel:
    """A function over whole tiles, called without the interpreter lock.

    Args:
        function: in the part of Python that numba compiles; it allocates and returns nothing.
        types: of its arguments in numba's shorthand: `u1[::1]` is a vector of bytes.
        maker: how another process finds it: a module of this package, a name in it, and what to
            call that with, unless the name is the kernel's own.
    """

    def __init__(
        self, function: Callable[..., Any], types: tuple[str, ...], maker: tuple[str, ...]
    ) -> None:
        self.function, self.types, self.maker = function, types, maker
        self._forms = [_form(kind) for kind in types]
        self.__doc__ = function.__doc__

    def __call__(self, *args: Any) -> None:
        """Run on C-contiguous arrays and numbers of exactly the kernel's types."""
        self.on(*args)()

    def on(self, *args: Any) -> Callable[..., None]:
        """Return the kernel with its first arguments given, to be called with those left.

        Arrays are taken apart here, once, and not at every call.
        """
        if len(args) > len(self._forms):
            raise TypeError(f"{len(args)} arguments, {len(self._forms)} are wanted")
        code, result, problem = self._code, ctypes.c_void_p(), ctypes.c_void_p()
        ready: list[Any] = [ctypes.byref(result), ctypes.byref(problem)]
        for arg, form in zip(args, self._forms, strict=False):
            ready += _parts(arg, form)
        left = self._forms[len(args) :]

        def call(*rest: Any) -> None:
            more: list[Any] = []
            for arg, form in zip(rest, left, strict=True):
                more += _parts(arg, form)
            if code(*ready, *more):
                raise RuntimeError(f"kernel {self.maker} has failed")

        call.arrays = args  # type: ignore[attr-defined]  # which must live as long as the call
        return call

    @cached_property
    def file(self) -> Path:
        """Where its machine code is kept once it has been compiled."""
        module, name, *given = self.maker
        suffix = f"-{hashlib.sha256(given[0].encode()).hexdigest()[:16]}" if given else ""
        return kernel_folder() / f"{module}.{name}{suffix}.o"

    @property
    def is_compiled(self) -> bool:
        """Whether its machine code is there, so that a call only loads it."""
        return "_code" in self.__dict__ or self.file.exists()

    @cached_property
    def _code(self) -> Any:
        from mergekit_lite.kernels import native, warm

        if not self.file.exists():
            warm.compile_kernels([self])
        kinds = [part for form in self._forms for part in _c_types(form)]
        address = native.load(self.file)
        if address is None:  # a write that did not reach the disk
            self.file.unlink(missing_ok=True)
            warm.compile_kernels([self])
            address = native.load(self.file)
        if address is None:
            raise MergekitLiteError(
                f"`{self.file}` is damaged as soon as it is written",
                hint="look after the disk, or set MERGEKIT_LITE_CACHE to a folder on another",
            )
        return ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *kinds)(address)


def kernel(*types: str) -> Callable[[Callable[..., None]], Kernel]:
    """Make a kernel of a function, with IEEE semantics (no reassociation, no fused products).

    Args:
        types: of its arguments, in numba's shorthand.
    """

    def made(function: Callable[..., None]) -> Kernel:
        module = function.__module__.rpartition(".")[2]
        found = Kernel(function, types, (module, function.__name__))
        KERNELS.append(found)
        return found

    return made


def find(maker: tuple[str, ...]) -> Kernel:
    """Return the kernel that says of itself that this is its maker."""
    module, name, *given = maker
    found = getattr(import_module(f"mergekit_lite.kernels.{module}"), name)
    kernel: Kernel = found(*given) if given else found
    return kernel


@cache
def kernel_folder() -> Path:
    """Return a folder that is named by the source of all kernels, the compiler and the CPU.

    A change in a helper changes the code of kernels in other files; a folder for each state of
    all source text cannot hold stale code.
    """
    from llvmlite.binding import get_host_cpu_features, get_host_cpu_name

    # A virtual machine may lack what a processor of its name has.
    machine = f"{get_host_cpu_name()} {get_host_cpu_features().flatten()}"
    digest = hashlib.sha256(f"{version('numba')} {machine}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    return cache_folder("kernels") / digest.hexdigest()[:16]


def _form(kind: str) -> Form:
    """Return what a type in numba's shorthand stands for."""
    name, _, shape = kind.partition("[")
    return _ENTRIES[name], shape.count(":") - 1 if shape else 0


def _parts(value: Any, form: Form) -> list[Any]:
    """Return one argument as numba passes it: an array as its parts, a number as it is."""
    (entry, number, _), dimensions = form
    if not dimensions:
        return [number(value)]
    if value.dtype != entry or value.ndim != dimensions or not value.flags.c_contiguous:
        raise TypeError(f"{value.dtype} array of shape {value.shape}: {entry} is wanted")
    # No owner: a kernel neither keeps nor frees what it is given.
    data = value.__array_interface__["data"][0]
    return [None, None, value.size, value.itemsize, data, *value.shape, *value.strides]


def _c_types(form: Form) -> list[Any]:
    (_, _, number), dimensions = form
    if not dimensions:
        return [number]
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    return [pointer, pointer, integer, integer, pointer, *[integer] * (2 * dimensions)]
