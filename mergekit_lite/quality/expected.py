"""What a recipe expects of its result: read before the merge, checked after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergekit_lite.calibrate.skeleton import require_transformers
from mergekit_lite.errors import DataError, MergekitLiteError, Problem, RecipeError
from mergekit_lite.quality.bounds import verdict
from mergekit_lite.quality.data import KINDS, Data, read_data
from mergekit_lite.quality.evaluate import evaluate
from mergekit_lite.quality.faults import kin_of_recipe
from mergekit_lite.quality.forward import Settings, Tell
from mergekit_lite.quality.results import Baseline, read_baseline, require_version
from mergekit_lite.quality.scores import Evaluation
from mergekit_lite.quality.subjects import MERGE, parents_of, subject
from mergekit_lite.quality.tasks import SCHEME, Task, read_tasks
from mergekit_lite.quality.verdicts import Verdict, verdicts_of
from mergekit_lite.recipe.schema import BASELINE, SCORES, Bound, DataKind, Expect, Recipe


@dataclass(frozen=True)
class Expected:
    """Bounds of a recipe with the data that they are about, read.

    Attributes:
        recipe: that expects.
        expect: its bounds.
        data: texts and questions, in order.
        baseline: what an earlier model scored, where the recipe names one.
        tasks: of lm-eval.
    """

    recipe: Recipe
    expect: Expect
    data: tuple[Data, ...]
    baseline: Baseline | None
    tasks: tuple[Task, ...] = ()

    @property
    def parents(self) -> list[str]:
        """Names of the models that bounds compare with, the base and experts."""
        named = dict.fromkeys(b.against for b in self.expect.bounds if b.against is not None)
        known = {"base", *self.recipe.experts}
        return [name for name in named if name in known]


def expected(recipe: Recipe, *, baseline: bool = True) -> Expected | None:
    """Return what a recipe expects, or None; all that can be wrong without its models is told.

    Args:
        recipe: that expects.
        baseline: read the baseline as well; else it is to be written.

    Raises:
        SourceError: data or baseline are missing, or transformers is.
        DataError: data cannot be read, or the baseline is of another version of it.
        RecipeError: a bound is about a score that its data does not have.
    """
    if recipe.expect is None:
        return None
    expect = recipe.expect
    require_transformers("expect")
    try:
        files = {n: file for n, file in expect.data.items() if not file.startswith(SCHEME)}
        read = read_data(files, folder=recipe.folder, most=expect.windows, size=expect.window_bytes)
        tasks = read_tasks(expect.data, folder=recipe.folder)
        _require_kinds(expect, read, tasks)
        earlier = None
        if expect.baseline is not None and baseline:
            file = recipe.folder / expect.baseline
            earlier = read_baseline(file)
            about = {b.data for b in expect.bounds if b.against == BASELINE}
            versions = {each.name: each.version for each in (*read, *tasks) if each.name in about}
            require_version(earlier, versions, file)
    except MergekitLiteError as error:
        where = recipe.at("expect", "data")
        placed = [replace(problem, where=problem.where or where) for problem in error.problems]
        raise type(error)(placed) from None
    return Expected(recipe, expect, tuple(read), earlier, tuple(tasks))


def check(
    wanted: Expected,
    folder: Path,
    settings: Settings | None = None,
    *,
    tell: Tell = lambda text: None,
) -> tuple[Evaluation, list[Verdict]]:
    """Score a recipe's result and the parents that its bounds name, and judge every bound.

    Args:
        wanted: what the recipe expects.
        folder: the result.
        settings: how it is run.
        tell: called with sentences on how far it is.

    Raises:
        SourceError, RecipeError, DataError, ResourceError: see `evaluate`; a bound that falls
            raises nothing.
    """
    merged = subject(MERGE, str(folder))
    parents = parents_of(wanted.recipe, wanted.parents)
    kin = kin_of_recipe(wanted.recipe, tell)
    found = evaluate(merged, parents, wanted.data, settings, tasks=wanted.tasks, kin=kin, tell=tell)
    return found, judged(wanted, found)


def judged(wanted: Expected, found: Evaluation) -> list[Verdict]:
    """Return what came of every bound, after the faults that any model may have.

    Raises:
        DataError: a bound looks at each token of a parent that has another tokenizer.
    """
    apart = [
        Problem(
            f"`{bound.against}` has another tokenizer, so there is no `{bound.score}` with it",
            bound.where,
            "bound the `recovery`, which compares whole texts",
        )
        for bound in wanted.expect.bounds
        if SCORES[bound.score].against == "parent" and bound.against not in found.likeness
    ]
    if apart:
        raise DataError(apart)
    about = [b for b in wanted.expect.bounds if b.against != BASELINE or wanted.baseline]
    return [*verdicts_of(found), *(verdict(bound, found, wanted.baseline) for bound in about)]


def _require_kinds(expect: Expect, read: Sequence[Data], tasks: Sequence[Task]) -> None:
    kinds: dict[str, DataKind] = {each.name: KINDS[type(each)] for each in read}
    kinds |= {each.name: "tasks" for each in tasks}

    def problem(bound: Bound) -> Problem | None:
        given = kinds[bound.data]
        if given in SCORES[bound.score].of:
            return None
        fitting = [name for name, kind in SCORES.items() if given in kind.of]
        what = f"`{bound.data}` holds {given}, which have no `{bound.score}`"
        return Problem(what, bound.where, f"they have {', '.join(fitting)}")

    if problems := [found for bound in expect.bounds if (found := problem(bound))]:
        raise RecipeError(problems)
