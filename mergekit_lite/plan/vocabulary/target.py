"""The vocabulary of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.vocabulary.compare import few
from mergekit_lite.plan.vocabulary.sides import Side
from mergekit_lite.recipe.schema import Recipe
from mergekit_lite.tokenizer.misfit import misfit
from mergekit_lite.tokenizer.read import added, plain_entry
from mergekit_lite.tokenizer.unite import new_tokens

UNION = "union"


@dataclass(frozen=True)
class Target:
    """Which tokens the result has, and how many rows.

    Attributes:
        owner: the input whose tokenizer it is, or begins with.
        ids: token -> row; None where no tokenizer is known, and rows are matched by number.
        rows: number of rows.
        new: those of them that the owner lacks.
        united: inputs whose tokens are put behind the owner's.
        entries: further added tokens, as a `tokenizer.json` describes them.
    """

    owner: Side
    ids: Mapping[str, int] | None
    rows: int
    new: Mapping[str, int] = field(default_factory=dict)
    united: tuple[str, ...] = ()
    entries: Sequence[Mapping[str, Any]] = field(default=())


def target_of(
    recipe: Recipe, sides: Mapping[str, Side], rule: str, findings: Findings
) -> Target | None:
    """Return the result's vocabulary, None where it has a problem, which is noted.

    Args:
        recipe: what is wanted.
        sides: the inputs that have rows for tokens, the base first.
        rule: the rule in force.
        findings: where problems are noted.
    """
    source = recipe.tokenizer.source
    named = source if source not in (None, UNION) else "base"
    where = recipe.at("tokenizer", "source")
    owner = sides.get(str(named))
    if owner is None:
        findings.problem(
            f"`{named}` has no rows for tokens, so its tokenizer cannot be the result's",
            where,
            "name the base or an expert with an embedding of its own",
        )
        return None
    if owner.tokens is None:
        return _by_number(recipe, owner, rule, findings)
    new: dict[str, int] = {}
    united: tuple[str, ...] = ()
    if rule == UNION:
        united = _united(recipe, owner, sides, new, findings)
    ids = {**owner.tokens.ids, **new}
    entries = _entries(recipe, ids, sides)
    more = new_tokens(ids, [{str(e["content"]): n for n, e in enumerate(entries)}])
    new |= more
    ids |= more
    if (united or entries) and owner.tokens.data is None:
        findings.problem(
            f"`{owner.name}` has no `tokenizer.json` to add tokens to",
            where,
            "save its tokenizer anew with a current version of transformers, which writes one",
        )
        return None
    rows = max(owner.rows, max(ids.values(), default=-1) + 1)
    if multiple := recipe.tokenizer.pad_to_multiple_of:
        rows = -(-rows // multiple) * multiple
    return Target(owner, ids, rows, new, united, entries)


def _by_number(recipe: Recipe, owner: Side, rule: str, findings: Findings) -> Target | None:
    if rule == UNION or recipe.tokenizer.tokens:
        findings.problem(
            f"`{owner.name}` has no tokenizer files that tell its tokens",
            recipe.at("tokenizer"),
            "put its tokenizer into its folder, or use `vocab: base_rows`, which then matches rows"
            " by number",
        )
        return None
    multiple = recipe.tokenizer.pad_to_multiple_of or 1
    return Target(owner, None, -(-owner.rows // multiple) * multiple)


def _united(
    recipe: Recipe,
    owner: Side,
    sides: Mapping[str, Side],
    new: dict[str, int],
    findings: Findings,
) -> tuple[str, ...]:
    """Return the experts with tokens that the owner lacks, and enter these into `new`.

    Those that cannot be united are noted.
    """
    known = owner.tokens.ids if owner.tokens else {}
    first = (owner.tokens.highest if owner.tokens else -1) + 1
    united = []
    for name, side in sides.items():
        where = recipe.at("experts", name)
        if side is owner or name == "base":
            continue
        if side.tokens is None:
            findings.problem(
                f"expert `{name}` has no tokenizer files, so its tokens cannot be united",
                where,
                "put its tokenizer into its folder, or use `vocab: base_rows`",
            )
            continue
        lacking = [t for t in side.tokens.ids if t not in known and t not in new]
        if not lacking:
            continue
        odd = misfit(owner.tokens, side.tokens) if owner.tokens and owner.tokens.data else ""
        if odd:
            findings.problem(
                f"the tokenizer of expert `{name}` cannot be united with the base's: {odd}; it has"
                f" {len(lacking)} tokens that the base lacks ({few(lacking)})",
                where,
                "use `vocab: base_rows`, which keeps the base's tokenizer",
            )
        united.append(name)
        start = first + len(new)
        new |= {token: start + number for number, token in enumerate(lacking)}
    return tuple(united)


def _entries(
    recipe: Recipe, ids: Mapping[str, int], sides: Mapping[str, Side]
) -> list[Mapping[str, Any]]:
    """Return what to add for tokens that the recipe names and no tokenizer so far has."""
    entries: list[Mapping[str, Any]] = []
    for token in recipe.tokenizer.tokens:
        if token in ids:
            continue
        described = [
            entry
            for side in sides.values()
            if side.tokens and side.tokens.data
            for entry in added(side.tokens.data)
            if entry["content"] == token
        ]
        entry = dict(described[0]) if described else plain_entry(token)
        entry.pop("id", None)
        entries.append(entry)
    return entries
