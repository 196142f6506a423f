"""Merge and compress model checkpoints from a recipe, as a stream."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergekit_lite.api import load, merge_tensors, plan, run

__version__ = "0.1.0"

__all__ = ["__version__", "load", "merge_tensors", "plan", "run"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `mergekit-lite --help` imports next to nothing.
    if name == "plan":
        return importlib.import_module("mergekit_lite.plan")
    if name in __all__:
        return getattr(importlib.import_module("mergekit_lite.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _PlanRoom(ModuleType):
    """`mergekit_lite.plan` is a room of this package and, called, the function `api.plan`."""

    def __call__(self, recipe: Any) -> Any:
        return importlib.import_module("mergekit_lite.api").plan(recipe)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds a room here once it is loaded, over a function of that name.
        if name == "plan" and isinstance(value, ModuleType):
            value.__class__ = _PlanRoom
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
