"""What a recipe may say, as frozen models.

The models hold a recipe after its short forms were written out (`shape.py`). Unknown keys and
chains of ops are checked before (`order.py`, `steps.py`), where the place of every key is known.
"""

from __future__ import annotations

from mergekit_lite.recipe.schema.bias import SwitchExperts
from mergekit_lite.recipe.schema.carve import Carve, CarveMethod, CarveRouter
from mergekit_lite.recipe.schema.dense import ToDense
from mergekit_lite.recipe.schema.expect import BASELINE, SCORES, Bound, DataKind, Expect, ScoreName
from mergekit_lite.recipe.schema.fields import SIZE_FORMS, parse_size
from mergekit_lite.recipe.schema.grow import Addition, Grow
from mergekit_lite.recipe.schema.inputs import BASE, Expert, RecipeStep
from mergekit_lite.recipe.schema.merge import MergeExperts, MergeMethod
from mergekit_lite.recipe.schema.moe import (
    Expand,
    Gate,
    Moe,
    MoeExpert,
    Noise,
    Redraw,
    Routing,
    SharedExpert,
    Target,
)
from mergekit_lite.recipe.schema.output import LoraOutput, Output
from mergekit_lite.recipe.schema.prune import Prune, PruneMethod
from mergekit_lite.recipe.schema.quantize import Quantize
from mergekit_lite.recipe.schema.recipe import Recipe, Stage
from mergekit_lite.recipe.schema.routers import Routers
from mergekit_lite.recipe.schema.rules import ACTIONS, ROLES, Match, Rule, Slice
from mergekit_lite.recipe.schema.search import Objective, Search
from mergekit_lite.recipe.schema.tokens import Tokenizer, TokenRule, TokenSource

__all__ = [
    "ACTIONS",
    "BASE",
    "BASELINE",
    "ROLES",
    "SCORES",
    "SIZE_FORMS",
    "Addition",
    "Bound",
    "Carve",
    "CarveMethod",
    "CarveRouter",
    "DataKind",
    "Expand",
    "Expect",
    "Expert",
    "Gate",
    "Grow",
    "LoraOutput",
    "Match",
    "MergeExperts",
    "MergeMethod",
    "Moe",
    "MoeExpert",
    "Noise",
    "Objective",
    "Output",
    "Prune",
    "PruneMethod",
    "Quantize",
    "Recipe",
    "RecipeStep",
    "Redraw",
    "Routers",
    "Routing",
    "Rule",
    "ScoreName",
    "Search",
    "SharedExpert",
    "Slice",
    "Stage",
    "SwitchExperts",
    "Target",
    "ToDense",
    "TokenRule",
    "TokenSource",
    "Tokenizer",
    "parse_size",
]
