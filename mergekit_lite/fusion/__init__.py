"""Fuse the next-token distributions of several models while one of them generates.

What comes out is no checkpoint: a large model that was not tuned follows the difference that tuning
made to a small one. `fuse` loads the models from folders, `FusedLogits` takes models in hand.
Needs transformers, which the extra `calibrate` brings.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import SourceError
from mergekit_lite.fusion.rules import fused_log_probabilities, matching_alpha

if TYPE_CHECKING:
    from mergekit_lite.fusion.load import Fusion, fuse
    from mergekit_lite.fusion.processor import FusedLogits, Pair

__all__ = [
    "FusedLogits",
    "Fusion",
    "Pair",
    "fuse",
    "fused_log_probabilities",
    "matching_alpha",
]

_PLACES = {"FusedLogits": "processor", "Pair": "processor", "Fusion": "load", "fuse": "load"}


def __getattr__(name: str) -> Any:
    # The two formulas can be had without transformers.
    if name in _PLACES:
        if importlib.util.find_spec("transformers") is None:
            hint = 'install it with `pip install "mergekit-lite[calibrate]"`'
            raise SourceError("fusion needs the package transformers", hint=hint)
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
