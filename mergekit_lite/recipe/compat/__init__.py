"""Recipes of mergekit, read as they are."""

from __future__ import annotations

from mergekit_lite.recipe.compat.notes import Note, Notes
from mergekit_lite.recipe.compat.recognise import Command, command_of, refuse
from mergekit_lite.recipe.compat.routed import RoutedTranslator
from mergekit_lite.recipe.compat.routed import is_theirs as is_of_routed
from mergekit_lite.recipe.compat.several import several
from mergekit_lite.recipe.compat.translate import Translator, is_theirs

__all__ = [
    "Command",
    "Note",
    "Notes",
    "RoutedTranslator",
    "Translator",
    "command_of",
    "is_of_routed",
    "is_theirs",
    "refuse",
    "several",
]
