"""Everything that weights and config show to be wrong, without running the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import MergekitLiteError, Problem
from mergekit_lite.quality.configs import config_faults
from mergekit_lite.quality.kinship import kinship
from mergekit_lite.quality.structure import Progress, counted, faults, zeroed
from mergekit_lite.quality.subjects import BASE, Subject, parents_of
from mergekit_lite.recipe import Recipe, load

if TYPE_CHECKING:
    from pathlib import Path

    from mergekit_lite.sources import Model


@dataclass(frozen=True)
class Kin:
    """What a model was made of.

    Attributes:
        base: that it was made on; None where that is not known.
        experts: that were to be merged, by name.
    """

    base: Model | None = None
    experts: Mapping[str, Model] = field(default_factory=dict)


def kin_of(parents: Sequence[Subject]) -> Kin:
    """Return parents by the parts that their names give them."""
    models = {parent.name: parent.model for parent in parents}
    return Kin(models.pop(BASE, None), models)


def kin_of_recipe(recipe: Recipe, tell: Callable[[str], object] = lambda text: None) -> Kin:
    """Return what a recipe merges, as far as its tensors can be held to the base's by name.

    Nothing where layers are arranged anew or routed, or an input is the result of a stage: that is
    said. Experts of weight 0 are left out.
    """
    if recipe.slices or recipe.moe is not None:
        tell("layers are arranged anew, so weights are not compared with the base's")
        return Kin()
    names = [name for name, expert in recipe.experts.items() if expert.weight != 0]
    try:
        return kin_of(parents_of(recipe, [BASE, *names]))
    except MergekitLiteError as error:
        tell(f"weights are not compared with the base's: {error.problems[0].what}")
        return Kin()


def faults_of(model: Model, kin: Kin, progress: Progress = lambda count: None) -> list[Problem]:
    """Return what is wrong with a model, whatever it scores.

    Found by itself: NaN and infinities, layers of zeros. Beside its base: matrices of zeros,
    tensors under another's name, a shifted vocabulary, experts of which it has nothing. Beside any
    parent: another rotary base, norm epsilon, activation or number of heads.

    Args:
        model: to look at; all its weights are read once, and so are those of its kin.
        kin: what it was made of.
        progress: called with the bytes of each of its tensors.
    """
    found = counted(model, progress)
    problems = faults(found)
    parents = [one for one in (kin.base, *kin.experts.values()) if one is not None]
    problems += config_faults(model.config, [parent.config for parent in parents])
    if kin.base is not None:
        related = kinship(model, kin.base, kin.experts)
        matrices = (
            n for n, sums in related.tensors.items() if sums.base and len(found[n].shape) > 1
        )
        problems += zeroed(found, matrices)
        problems += related.faults
    return problems


def faults_of_output(
    model: Model, lock: Mapping[str, Any], folder: Path | None, progress: Progress
) -> list[Problem]:
    """Return what is wrong with the output of a run.

    Args:
        model: the output.
        lock: of that run.
        folder: that its inputs are spelt from; None looks at the output alone.
        progress: called with the bytes of each of its tensors.
    """
    if folder is None:
        return faults_of(model, Kin(), progress)
    recipe = load(lock["recipe"]).model_copy(update={"folder": folder})
    return faults_of(model, kin_of_recipe(recipe), progress)
