"""The recipe by which a patch is applied to its base: an ordinary merge of one expert."""

from __future__ import annotations

from typing import Any


def recipe_of(patch: str, base: str, dtype: str | None) -> dict[str, Any]:
    """Return the recipe that makes the model which a patch stands for.

    Every tensor is the base's plus the difference, rounded once; tensors that are stored whole are
    copied.

    Args:
        patch: path of the patch.
        base: the model it was made against.
        dtype: of the output; None for that of the base.
    """
    recipe: dict[str, Any] = {
        "base": base,
        "experts": {"patch": {"model": patch}},
        "steps": ["task_arithmetic"],
        "rules": [{"match": "*", "take": "patch"}],
    }
    if dtype is not None:
        recipe["output"] = {"dtype": dtype}
    return recipe
