"""Send each text to the model that is best at its kind: a fitted `router.json`.

Nothing is merged: every model stays whole, and a text goes through one of them. The router is a
linear classifier, fitted in closed form, that needs numpy alone.
"""

from __future__ import annotations

from mergekit_lite.router.file import SCHEMA, Choice, Router, load_router
from mergekit_lite.router.fit import Fitted, HeldOut, fit_router, held_out_split
from mergekit_lite.router.models import choose_models

__all__ = [
    "SCHEMA",
    "Choice",
    "Fitted",
    "HeldOut",
    "Router",
    "choose_models",
    "fit_router",
    "held_out_split",
    "load_router",
]
