"""The mathematics of merging: one op a file, pure functions of tensors."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops._chain import merge
from mergekit_lite.ops._spec import REGISTRY, OpSpec, get
from mergekit_lite.ops._tensors import merge_tensors
from mergekit_lite.registered import entry_points

__all__ = ["OpSpec", "get", "merge", "merge_tensors", "registry"]


@cache
def _discover() -> None:
    for room in ("transform", "combine", "post", "presets"):
        package = importlib.import_module(f"{__name__}.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    for entry in entry_points(group="mergekit_lite.ops"):
        try:
            entry.load()
        except Exception as error:
            raise RecipeError(
                f"the op `{entry.name}` ({entry.value}) cannot be loaded: {error}",
                hint="update or remove the package that registers it",
            ) from error


def registry() -> Mapping[str, OpSpec]:
    """Return every op by name: the built-in ones and those of installed entry points.

    Raises:
        RecipeError: the op of another package cannot be loaded.
    """
    _discover()
    return REGISTRY
