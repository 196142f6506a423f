"""The mathematics of merging: one op a file, pure functions of tensors."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points

from mergekit_lite.ops._chain import merge, merge_tensors
from mergekit_lite.ops._spec import REGISTRY, OpSpec, get

__all__ = ["OpSpec", "get", "merge", "merge_tensors", "registry"]


@cache
def _discover() -> None:
    for room in ("transform", "combine", "post", "presets"):
        package = importlib.import_module(f"{__name__}.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    for entry in entry_points(group="mergekit_lite.ops"):
        entry.load()


def registry() -> Mapping[str, OpSpec]:
    """Return every op by name: the built-in ones and those of installed entry points."""
    _discover()
    return REGISTRY
