"""Methods that compress several fine-tunes of one base together: one function a file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from mergekit_lite.compress.stores._spec import METHODS, Deltas, Joint, StoreMethod
from mergekit_lite.errors import RecipeError, nearest

__all__ = ["Deltas", "Joint", "StoreMethod", "method_named", "store_methods"]


@cache
def _discover() -> None:
    package = importlib.import_module(f"{__name__}.methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def store_methods() -> Mapping[str, StoreMethod]:
    """Return every method by name."""
    _discover()
    return METHODS


def method_named(name: str) -> StoreMethod:
    """Return a method.

    Raises:
        RecipeError: there is none of this name.
    """
    found = store_methods()
    if name not in found:
        hint = nearest(name, found) or f"there are {', '.join(found)}"
        raise RecipeError(f"there is no store method `{name}`", hint=hint)
    return found[name]
