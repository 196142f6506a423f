"""A search, read: what is chosen, by what, and what is held out for the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergekit_lite.calibrate.skeleton import require_transformers
from mergekit_lite.errors import MergekitLiteError, Problem, RecipeError
from mergekit_lite.quality.data import KINDS, Data, read_data
from mergekit_lite.recipe.load import Tree, checked, read_tree
from mergekit_lite.recipe.marks import Node, Problems, show
from mergekit_lite.recipe.schema import SCORES, DataKind, Objective, Recipe, ScoreName, Search
from mergekit_lite.recipe.searched import Searched, searched, with_values
from mergekit_lite.search.guard import require_apart, require_no_test_sets


@dataclass(frozen=True)
class Wanted:
    """What a command line says beside the recipe.

    Attributes:
        data: more data, name -> file, from the working folder.
        test: more held-out data.
        windows: of each text, and questions of each file; None leaves it to the recipe.
        window_bytes: of a window; None leaves it to the recipe.
        allow_test_data: choose by data whose names say that it is for tests.
        parameters: whether there must be parameters to search.
    """

    data: Mapping[str, str]
    test: Mapping[str, str]
    windows: int | None = None
    window_bytes: int | None = None
    allow_test_data: bool = False
    parameters: bool = True


@dataclass(frozen=True)
class Task:
    """What is searched, and by what.

    Attributes:
        tree: the recipe as it was read.
        parameters: that are chosen, in reading order.
        recipe: with every parameter at its default, or in the middle.
        data: validation texts and questions.
        objectives: what is made better on them.
        test: held-out data, looked at once.
        files: name of the data -> file, of both.
    """

    tree: Tree
    parameters: tuple[Searched, ...]
    recipe: Recipe
    data: tuple[Data, ...]
    objectives: tuple[Objective, ...]
    test: tuple[Data, ...]
    files: Mapping[str, str]

    @property
    def parents(self) -> list[str]:
        """Names of the models that objectives compare with."""
        return list(dict.fromkeys(o.against for o in self.objectives if o.against is not None))

    @property
    def start(self) -> dict[str, Any]:
        """The values to begin with."""
        return {parameter.name: parameter.start for parameter in self.parameters}

    def root_of(self, values: Mapping[str, Any]) -> Node:
        """Return the recipe's tree with values for its parameters, and without its `search`."""
        root = with_values(self.tree.root, self.parameters, values)
        return root.with_value({k: v for k, v in root.entries().items() if k != "search"})

    def recipe_of(self, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe with values for its parameters.

        Raises:
            RecipeError: values do not fit one another.
        """
        return checked(self.tree, self.root_of(values), Problems())


def read_task(source: Path, overrides: Sequence[str], wanted: Wanted) -> Task:
    """Read a recipe and all data of a search; everything is told that is wrong with them.

    Args:
        source: the recipe.
        overrides: `path=value` texts laid over it.
        wanted: what the command line says.

    Raises:
        RecipeError: nothing is searched, by nothing, or by what is for tests; or a value that
            could be chosen does not fit.
        SourceError, DataError: data is missing or cannot be read.
    """
    require_transformers("search")
    tree = read_tree(source, overrides, problems := Problems())
    if tree.command != "ours":
        hint = "convert it with `mergekit-lite import`, and mark its parameters"
        raise RecipeError("parameters are searched in recipes of our own", str(source), hint)
    parameters = searched(tree.root, problems)
    problems.raise_if_any()
    if wanted.parameters and not parameters:
        hint = "write `weight: {search: [0, 1]}`, or `{choice: [...]}`, in place of a value"
        raise RecipeError("the recipe has nothing to search", tree.name, hint)
    _require_all_fit(tree, parameters)
    start = {parameter.name: parameter.start for parameter in parameters}
    recipe = checked(tree, with_values(tree.root, parameters, start), problems)
    asked = recipe.search or Search()
    place = recipe.at("search", "data")
    chosen, tested = {**asked.data, **wanted.data}, {**asked.test, **wanted.test}
    if not chosen:
        hint = "write `search: {data: {german: validation.txt}}`, or give --data"
        raise RecipeError("there is nothing to choose by: no objective", tree.name, hint)
    if not wanted.allow_test_data:
        require_no_test_sets(chosen, place)
    how = {
        "folder": recipe.folder,
        "most": wanted.windows or asked.windows,
        "size": wanted.window_bytes or asked.window_bytes,
    }
    data, test = _read(chosen, place, how), _read(tested, recipe.at("search", "test"), how)
    require_apart(data, test, recipe.at("search", "test"))
    objectives = asked.objectives or _by_kind(data)
    _require_kinds(objectives, data)
    return Task(tree, parameters, recipe, data, objectives, test, {**tested, **chosen})


def _read(files: Mapping[str, str], place: str, how: Mapping[str, Any]) -> tuple[Data, ...]:
    try:
        return tuple(read_data(files, **how))
    except MergekitLiteError as error:
        placed = [replace(problem, where=problem.where or place) for problem in error.problems]
        raise type(error)(placed) from None


_USUAL: Mapping[DataKind, ScoreName] = {
    "texts": "bits_per_byte",
    "questions": "accuracy",
    "labels": "accuracy",
    "pairs": "correlation",
}


def _by_kind(data: Sequence[Data]) -> tuple[Objective, ...]:
    return tuple(
        Objective(
            data=one.name,
            score=_USUAL[KINDS[type(one)]],
            where=one.name,
        )
        for one in data
    )


def _require_kinds(objectives: Sequence[Objective], data: Sequence[Data]) -> None:
    kinds = {one.name: KINDS[type(one)] for one in data}
    problems = []
    for objective in objectives:
        given = kinds[objective.data]
        if given not in SCORES[objective.score].of:
            fitting = [name for name, kind in SCORES.items() if given in kind.of]
            what = f"`{objective.data}` holds {given}, which have no `{objective.score}`"
            problems.append(Problem(what, objective.where, f"they have {', '.join(fitting)}"))
    if problems:
        raise RecipeError(problems)


def _require_all_fit(tree: Tree, parameters: Sequence[Searched]) -> None:
    """Check that the ends of every range, and every choice, are values that may stand there."""
    found: dict[Problem, None] = {}
    for number in range(max([2, *(len(p.choices) for p in parameters)])):
        values = {p.name: _probe(p, number) for p in parameters}
        found |= _wrong(tree, parameters, values)
    if not found:
        # Only now, as what is wrong here is wrong because the number is no whole one.
        between = {p.name: p.start if p.choices else _between(p) for p in parameters}
        hint = "give the range a `step` of 1"
        wrong = _wrong(tree, parameters, between)
        found = {Problem(p.what, p.where, hint): None for p in wrong}
    if found:
        raise RecipeError(list(found))


def _probe(parameter: Searched, number: int) -> Any:
    if parameter.choices:
        return parameter.choices[number % len(parameter.choices)]
    return value_of(parameter, parameter.high if number % 2 else parameter.low)


def _between(parameter: Searched) -> Any:
    inside = parameter.low + 0.618 * (parameter.high - parameter.low)
    return value_of(parameter, inside if parameter.step is None else parameter.at_step(inside))


def value_of(parameter: Searched, number: float) -> float | int:
    """Return a number of a range as it stands in a recipe: no longer than a person writes it."""
    if parameter.whole:
        return int(number)
    return min(max(float(f"{number:.6g}"), parameter.low), parameter.high)


def _wrong(
    tree: Tree, parameters: Sequence[Searched], values: Mapping[str, Any]
) -> dict[Problem, None]:
    try:
        checked(tree, with_values(tree.root, parameters, values), Problems())
    except RecipeError as error:
        return dict.fromkeys(error.problems)
    return {}


def shown(values: Mapping[str, Any]) -> str:
    """Return values in one line."""
    return ", ".join(
        f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {show(value)}"
        for name, value in values.items()
    )
