"""From what a recipe says about vocabularies to inputs that all have the result's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import DataError
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import Mapped, View, placed
from mergekit_lite.plan.names import plural
from mergekit_lite.plan.row_maps import RowMap
from mergekit_lite.plan.vocabulary.compare import Difference, choices, compare, few
from mergekit_lite.plan.vocabulary.ids import beyond, renumber
from mergekit_lite.plan.vocabulary.sides import Side, side_of
from mergekit_lite.plan.vocabulary.target import UNION, Target, target_of
from mergekit_lite.plan.vocabulary.templates import template_of
from mergekit_lite.recipe.schema import Recipe
from mergekit_lite.tokenizer.files import many_objects
from mergekit_lite.tokenizer.unite import additions

if TYPE_CHECKING:
    from mergekit_lite.plan.vocabulary.assign import Assignment


@dataclass
class Vocabulary:
    """What the result's vocabulary asks of the plan.

    Attributes:
        row_maps: how inputs are gathered, by key.
        tokenizer: how the tokenizer files are made; empty where they are the base's.
    """

    row_maps: dict[str, RowMap] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)


def settle(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> Vocabulary:
    """Give all inputs the rows of the result's vocabulary, or note what keeps them from it.

    Without a rule nothing changes here; an expert whose rows do not fit the base's tells so when
    one of its tensors of tokens is to be merged.

    Args:
        recipe: what is wanted.
        found: the base and the experts; their rows for tokens change.
        findings: where problems are noted.
    """
    vocabulary = _settle(recipe, found, findings)
    if template := template_of(recipe, found, vocabulary.tokenizer, findings):
        vocabulary.tokenizer["template"] = template
    return vocabulary


def _settle(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> Vocabulary:
    base_view = found["base"]
    names, rows = configs.token_tensors(base_view.base, base_view.model.config)
    rule = _rule(recipe)
    if not names:
        if rule:
            findings.problem(
                "the base has no embedding of tokens, so a rule about the vocabulary means nothing",
                recipe.at("vocab" if recipe.vocab else "tokenizer"),
                "remove it",
            )
        return Vocabulary()
    _correct(recipe, base_view, names, rows, findings)
    base = Side(base_view, rows)
    sides = {"base": base}
    for name, view in found.items():
        if name != "base" and (side := side_of(view, names, base)):
            sides[name] = side
    try:
        if rule:
            with many_objects():
                return _follow(recipe, found, sides, names, rule, findings)
        beyond(recipe, base, findings)
    except DataError as error:
        findings.problems += placed(error.problems, recipe.at("tokenizer"))
        return Vocabulary()
    for side in sides.values():
        if side is not base:
            side.view.check_rows = _Check(recipe, side, base, names, findings)
    return Vocabulary()


def _correct(
    recipe: Recipe, base: View, names: tuple[str, ...], rows: int, findings: Findings
) -> None:
    """Let the result's config name the rows that there are."""
    named = configs.value(base.model.config, "vocab_size")
    if isinstance(named, int) and named != rows:
        base.changes["vocab_size"] = rows
        findings.warn(
            f"the base's config says vocab_size {named}, `{names[0]}` has {rows} rows; the result's"
            " config says what is there",
            recipe.at("base"),
        )


def _rule(recipe: Recipe) -> str:
    """Return the rule that a recipe chooses, in so many words or by what it asks for."""
    tokenizer = recipe.tokenizer
    if recipe.vocab:
        return recipe.vocab
    if tokenizer.source == UNION:
        return UNION
    asks = tokenizer.source or tokenizer.tokens or tokenizer.pad_to_multiple_of
    return "base_rows" if asks else ""


class _Check:
    """Looks at an expert's rows when they are first wanted, and says what is wrong with them."""

    def __init__(
        self, recipe: Recipe, side: Side, base: Side, names: tuple[str, ...], findings: Findings
    ) -> None:
        self._recipe, self._side, self._base = recipe, side, base
        self._names, self._findings = frozenset(names), findings
        self._difference: Difference | None = None

    def __call__(self, name: str, shapes: str) -> bool:
        """Return whether a tensor of the expert may be merged row by row, as far as tokens go."""
        if name not in self._names:
            return True
        where = self._recipe.at("experts", self._side.name)
        if self._difference is None:
            try:
                self._difference = compare(self._side, self._base)
            except DataError as error:
                self._findings.problems += placed(error.problems, where)
                self._difference = Difference(self._side.rows, self._base.rows, known=False)
            self._warn(self._difference, where)
        difference = self._difference
        if not difference.stops or (self._by_number and self._side.rows == self._base.rows):
            return True
        self._findings.problem_with(
            f"`{name}`{shapes}",
            f"expert `{self._side.name}` has another vocabulary than the base: {difference}",
            where,
            choices(difference),
        )
        return False

    @property
    def _by_number(self) -> bool:
        return self._recipe.compat == "mergekit"

    def _warn(self, difference: Difference, where: str) -> None:
        if difference.stops and self._by_number and difference.rows == difference.base_rows:
            self._findings.warn(
                f"expert `{self._side.name}` has another vocabulary than the base ({difference});"
                " rows are merged by number all the same",
                where,
            )
        elif difference.new and not difference.stops:
            self._findings.warn(
                f"expert `{self._side.name}` has {plural(len(difference.new), 'token')} that the"
                f" base's tokenizer lacks ({few(difference.new)}): their rows are merged, the"
                " result's tokenizer is the base's; `vocab: union` keeps them",
                where,
            )


def _follow(
    recipe: Recipe,
    found: Mapping[str, View],
    sides: Mapping[str, Side],
    names: tuple[str, ...],
    rule: str,
    findings: Findings,
) -> Vocabulary:
    """Map all inputs to the vocabulary that the rule gives the result."""
    # Takes numpy, which few plans need.
    from mergekit_lite.plan.vocabulary.assign import Assignment

    _heights(recipe, found, sides, names, findings)
    target = target_of(recipe, sides, rule, findings)
    if target is None:
        return Vocabulary()
    assignment = Assignment(recipe, sides, target, common=rule == "common_rows", findings=findings)
    result = Vocabulary()
    generation = renumber(recipe, sides["base"], target, findings)
    _tell(recipe, sides, target, assignment, rule, findings)
    for _name, side in sides.items():
        _map(side, names, target, assignment, result)
        _lend(recipe, side, names, findings)
    for view in found.values():
        view.base = {
            name: replace(info, shape=(target.rows, *info.shape[1:])) if name in names else info
            for name, info in view.base.items()
        }
    result.tokenizer = _files(target, sides, generation)
    return result


def _heights(
    recipe: Recipe,
    found: Mapping[str, View],
    sides: Mapping[str, Side],
    names: tuple[str, ...],
    findings: Findings,
) -> None:
    """Note experts whose tensors of tokens do not all have as many rows."""
    for name, view in found.items():
        heights = {n: shape[0] for n in names if (shape := view.stored_shape(n))}
        if name in sides or view.settled or view.is_base or len(set(heights.values())) < 2:
            continue
        listed = ", ".join(f"`{tensor}` {height}" for tensor, height in heights.items())
        findings.problem(
            f"expert `{name}` has other numbers of rows in its tensors of tokens: {listed}",
            recipe.at("experts", name),
            "save it again after resizing all of them",
        )


def _map(
    side: Side,
    names: tuple[str, ...],
    target: Target,
    assignment: Assignment,
    result: Vocabulary,
) -> None:
    """Make an input show the rows of the result, unless they are its own, in order."""
    row_map, parts = assignment.of(side.name)
    if row_map.runs == ((0, side.rows, 0, 0),) and side.rows == target.rows:
        return
    view = side.view
    result.row_maps[side.name] = row_map
    delta_key = ""
    if view.model.adapter is not None:
        delta_key = f"{side.name} (delta)"
        result.row_maps[delta_key] = assignment.of_delta(side.name)
    others = tuple(assignment.side(part).view for part in parts[1:])
    view.mapped = Mapped(
        key=side.name,
        delta_key=delta_key,
        rows=target.rows,
        names=frozenset(names),
        others=others,
        averages=row_map.averages,
    )


def _lend(recipe: Recipe, side: Side, names: tuple[str, ...], findings: Findings) -> None:
    """Note an input that is to lend rows of a tensor that it lacks."""
    for other in side.view.mapped.others if side.view.mapped else ():
        for name in names:
            if not other.covers(name):
                findings.problem(
                    f"expert `{other.name}` has tokens that the base lacks, and no `{name}` with"
                    " rows for them",
                    recipe.at("experts", other.name),
                    "use `vocab: base_rows`, or an expert with both embedding and head",
                )


def _tell(
    recipe: Recipe,
    sides: Mapping[str, Side],
    target: Target,
    assignment: Assignment,
    rule: str,
    findings: Findings,
) -> None:
    """Warn of what is lost, assumed or made up."""
    where = recipe.at("vocab") if recipe.vocab else recipe.at("tokenizer")
    named = f"`vocab: {rule}`" if recipe.vocab else "the tokenizer of the result"
    for name, side in sides.items():
        who = "the base" if name == "base" else f"expert `{name}`"
        if lost := assignment.lost(name):
            findings.warn(
                f"{named} leaves out {plural(len(lost), 'token')} of {who}: {few(lost)}", where
            )
        if side.tokens is None:
            findings.warn(f"{who} has no tokenizer files: its rows are matched by number", where)
    if assignment.made_up and target.ids is not None:
        tokens = {row: token for token, row in target.ids.items()}
        made_up = [tokens[row] for row in assignment.made_up]
        findings.warn(
            f"no model has a row for {plural(len(made_up), 'token')} ({few(made_up)}): it is the"
            " mean of the others",
            where,
        )


def _files(
    target: Target, sides: Mapping[str, Side], generation: Mapping[str, Any]
) -> dict[str, Any]:
    """Return how the tokenizer files of the result are made, nothing where they are the base's."""
    found: dict[str, Any] = {}
    if target.owner.name != "base":
        found = {"source": target.owner.name, "generation": dict(generation)}
    if target.owner.tokens is not None and (target.united or target.entries):
        others = [own for name in target.united if (own := sides[name].tokens) is not None]
        if more := additions(target.owner.tokens, others, target.new, target.entries):
            found["additions"] = more
    return found
