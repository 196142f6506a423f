"""Ways of making gates, one a file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from mergekit_lite.moe.gates._measure import Measure, name_of
from mergekit_lite.moe.gates._spec import GATES, GateRequest, Gates, GateSpec, gate

__all__ = ["GateRequest", "GateSpec", "Gates", "Measure", "gate", "name_of", "registry"]


@cache
def _discover() -> None:
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__name__}.{module.name}")


def registry() -> Mapping[str, GateSpec]:
    """Return every method by name."""
    _discover()
    return GATES
