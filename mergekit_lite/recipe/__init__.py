"""Reading recipes: text to a checked, frozen `Recipe`."""

from __future__ import annotations

from mergekit_lite.recipe.cascade import Chain, chain, expand, resolve
from mergekit_lite.recipe.load import draft, load
from mergekit_lite.recipe.schema import Expert, Match, Output, Recipe, RecipeStep, Rule, parse_size

__all__ = [
    "Chain",
    "Expert",
    "Match",
    "Output",
    "Recipe",
    "RecipeStep",
    "Rule",
    "chain",
    "draft",
    "expand",
    "load",
    "parse_size",
    "resolve",
]
