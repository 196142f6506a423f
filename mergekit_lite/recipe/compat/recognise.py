"""Which command a recipe was written for."""

from __future__ import annotations

from typing import Literal

from mergekit_lite.recipe.marks import Node, Problems

Command = Literal["ours", "merge", "moe", "evolve"]
SHAPES = ("models", "slices", "modules")
"""Keys under which a merge names its models, one of which it has."""


def command_of(root: Node) -> Command:
    """Return which command a recipe is for: ours, or which of mergekit's."""
    entries = root.entries()
    experts = entries.get("experts")
    routed = any(
        key in item.entries()
        for item in (experts.items() if experts else [])
        for key in ("source_model", "positive_prompts")
    )
    if routed or "gate_mode" in entries:
        return "moe"
    if "genome" in entries:
        return "evolve"
    if "merge_method" in entries:
        return "merge"
    if "base" in entries or "steps" in entries or "experts" in entries:
        return "ours"
    return "merge" if any(shape in entries for shape in SHAPES) else "ours"


def refuse(command: Command, root: Node, problems: Problems) -> None:
    """Note that a recipe is for a command of mergekit that there is no like of here."""
    entries = root.entries()
    if command == "evolve":
        problems.add(
            "this is a recipe of `mergekit-evolve`: it searches for the best merge by evaluating "
            "many, which is not supported by this version",
            entries["genome"].key,
            "write one merge: `merge_method`, `models` and their `parameters`",
        )
