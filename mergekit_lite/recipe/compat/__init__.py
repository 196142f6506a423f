"""Recipes of mergekit, read as they are; what reads them is imported where there is one."""

from __future__ import annotations

from mergekit_lite.recipe.compat.notes import Note, Notes
from mergekit_lite.recipe.compat.recognise import Command, command_of, refuse

__all__ = ["Command", "Note", "Notes", "command_of", "refuse"]
