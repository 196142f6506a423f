"""What is carried from an old base to a new one by `port_patch`, and whether configs let it fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.recipe.schema import Recipe, RecipeStep

OP = "port_patch"


def check_ported(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> None:
    """Note patches that cannot be carried over, or that carry nothing.

    Args:
        recipe: whose steps are looked at.
        found: the base, which is the new one, and the experts.
        findings: where problems are noted.
    """
    for step in _steps(recipe):
        tuned, old = found.get(str(step.params.get("from"))), step.params.get("old_base")
        if step.op != OP or tuned is None:
            continue
        is_adapter = tuned.model.adapter is not None
        if is_adapter and old is not None:
            findings.problem(
                f"`{tuned.name}` is an adapter, which is a difference already; less `{old}` it"
                " would be none",
                step.where,
                "leave `old_base` out",
            )
        elif not is_adapter and old is None:
            findings.warn(
                f"`{tuned.name}` is a model: without `old_base`, the model that it was tuned from,"
                " the new base is undone where it differs",
                step.where,
            )
        for view in (tuned, found.get(str(old))):
            if view is not None:
                _check_positions(view, found["base"], step.where, findings)


def _check_positions(view: View, base: View, where: str, findings: Findings) -> None:
    """Refuse models that turn positions in another way: equal shapes, other meaning."""
    if differing := configs.positions_differ(view.model.config, base.model.config):
        findings.problem(
            f"`{OP}` carries what was learnt on other positions: `{view.name}` has {differing}",
            where,
            "a patch fits a base with the same position embeddings; to add it all the same, write"
            " `task_arithmetic` with weights 1 and -1",
        )


def _steps(recipe: Recipe) -> Iterator[RecipeStep]:
    yield from recipe.steps
    for rule in recipe.rules:
        yield from rule.steps or ()
    for part in recipe.slices:
        yield from part.steps or ()


def pairs_of(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (fine-tune, its old base) of every full patch in a plan's recipe, each once."""
    chains = [recipe.get("steps")]
    chains += [part.get("steps") for key in ("rules", "slices") for part in recipe.get(key) or ()]
    patches = [step[OP] for steps in chains for step in steps or () if OP in step]
    named = [(patch.get("from"), patch.get("old_base")) for patch in patches]
    return list(dict.fromkeys((tuned, old) for tuned, old in named if tuned and old))
