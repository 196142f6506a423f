"""Loads compiled kernels into this process, with llvmlite alone."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

_engines: list[Any] = []
_lock = threading.Lock()


def load(file: Path) -> int | None:
    """Return the address of the function in a file that `save` has written, None if damaged."""
    digest, _, content = file.read_bytes().partition(b"\n")
    # LLVM ends the process over a file that is cut short.
    if digest != _digest(content):
        return None
    name, _, code = content.partition(b"\n")
    with _lock:
        if not _engines:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            # What would end arrays that their owner has given up; ours never have one.
            abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
            llvm.add_symbol("NRT_MemInfo_call_dtor", abort)
        target = llvm.Target.from_default_triple().create_target_machine()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _engines.append(engine)  # the code lives as long as its engine
        address: int = engine.get_function_address(name.decode())
    return address


def save(file: Path, name: str, code: bytes) -> None:
    """Write machine code with the name of its function; the file appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{threading.get_native_id()}.partial")
    content = name.encode() + b"\n" + code
    partial.write_bytes(_digest(content) + b"\n" + content)
    partial.replace(file)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
