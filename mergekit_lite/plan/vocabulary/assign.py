"""Which stored row each row of the result is for each input.

A row that an input lacks is the base's; where the base lacks it too, it is the mean of the rows of
the experts that have it. So an input that lacks a token does not change the token's row in a
combination of differences, and in a mean of weights it stands for what the others say.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.row_maps import MEAN, SHARED, ZERO, RowMap, row_map
from mergekit_lite.plan.vocabulary.sides import Side
from mergekit_lite.plan.vocabulary.target import Target
from mergekit_lite.recipe.schema import Recipe, TokenSource

Origin = tuple[str, int]
"""An input's name and the number of a row that it has stored."""
Origins = tuple[Origin, ...]
Rows = NDArray[np.int64]


def own_rows(side: Side, base: Side, target: Target) -> Rows:
    """Return for each row of the result the input's own row, -1 where it has none.

    Rows without a token are matched by number, if they are without a token in both.
    """
    found = np.full(target.rows, -1, np.int64)
    mine = side.known(base)
    same = min(target.rows, side.rows)
    if target.ids is None or mine is None:
        found[:same] = np.arange(same)
        return found
    count = len(target.ids)
    named = np.fromiter(target.ids.values(), np.int64, count)
    found[named] = np.fromiter(map(mine.get, target.ids, repeat(-1)), np.int64, count)
    padding = np.ones(same, bool)
    padding[named[named < same]] = False
    used = np.fromiter(mine.values(), np.int64, len(mine))
    padding[used[used < same]] = False
    rows = np.flatnonzero(padding)
    found[rows] = rows
    return found


class Assignment:
    """Every input's rows of the result.

    Args:
        recipe: what is wanted.
        sides: the inputs that have rows for tokens, the base first.
        target: the result's vocabulary.
        common: merge only rows of tokens that all inputs have.
        findings: where problems are noted.
    """

    def __init__(
        self,
        recipe: Recipe,
        sides: Mapping[str, Side],
        target: Target,
        *,
        common: bool,
        findings: Findings,
    ) -> None:
        self._sides, self._base, self._target = sides, sides["base"], target
        self._names = list(sides)
        self._own = {name: own_rows(side, self._base, target) for name, side in sides.items()}
        # What a row is for an input that lacks it: an input and its row, or one of the words above.
        self._source = np.full(target.rows, MEAN, np.int64)
        self._at = np.full(target.rows, -1, np.int64)
        self._shared: dict[int, Origins] = {}
        self._forced = np.zeros(target.rows, bool)
        self._fall_back()
        self._name_sources(recipe, findings)
        if common:
            for own in self._own.values():
                self._forced |= own < 0
        named = np.zeros(target.rows, bool)
        named[list((target.ids or {}).values())] = True
        self._in_result = {name: int((own[named] >= 0).sum()) for name, own in self._own.items()}
        self.made_up = np.flatnonzero(named & (self._source == MEAN)).tolist()

    def _fall_back(self) -> None:
        """Enter the base's row, or the row of the one expert that has it, or their mean."""
        own = np.stack(list(self._own.values()))
        having = own[1:] >= 0
        several = (own[0] < 0) & (having.sum(0) > 1)
        for number in range(len(own) - 1, -1, -1):
            rows = own[number] >= 0
            self._source[rows], self._at[rows] = number, own[number][rows]
        self._source[several] = SHARED
        for row in np.flatnonzero(several).tolist():
            experts = np.flatnonzero(having[:, row]) + 1
            self._shared[row] = tuple((self._names[e], int(own[e, row])) for e in experts)

    def _name_sources(self, recipe: Recipe, findings: Findings) -> None:
        """Enter the sources that the recipe gives for single tokens."""
        ids = self._target.ids or {}
        for token, rule in recipe.tokenizer.tokens.items():
            row = ids.get(token)
            if row is None:
                continue
            if rule.source is not None:
                where = recipe.at("tokenizer", "tokens", token)
                origin = self._named(token, rule.source, where, findings)
                if origin is None:
                    continue
                self._source[row], self._at[row] = origin
            self._forced[row] |= rule.force

    def _named(
        self, token: str, source: str | TokenSource, where: str, findings: Findings
    ) -> tuple[int, int] | None:
        """Return the number of an input and its row; None where there is a problem."""
        if source == "zero" or (isinstance(source, TokenSource) and source.kind == "zero"):
            return ZERO, -1
        spec = TokenSource(model=source) if isinstance(source, str) else source
        side = self._sides.get(spec.model or "")
        if side is None:
            what = f"`{spec.model}` has no rows for tokens, so it has none for `{token}`"
            findings.problem(what, where, "name the base or an expert with an embedding")
            return None
        row = spec.token_id
        if row is None:
            row = (side.known(self._base) or {}).get(spec.token or token)
        if row is None or row >= side.rows:
            missing = f"token `{spec.token or token}`" if row is None else f"row {row}"
            findings.problem(
                f"`{side.name}` has no {missing}, which `{token}` is to be taken from",
                where,
                f"it has {side.rows} rows; name another token, `token_id` or `zero`",
            )
            return None
        return self._names.index(side.name), row

    def of(self, name: str) -> tuple[RowMap, tuple[str, ...]]:
        """Return the map of an input, and the inputs that its parts are, itself first."""
        me, own = self._names.index(name), self._own[name]
        mine = (own >= 0) & ~self._forced
        source, at = np.where(mine, me, self._source), np.where(mine, own, self._at)
        shared = {row: self._shared[row] for row in np.flatnonzero(source == SHARED).tolist()}
        lent = {self._names[number] for number in np.unique(source[source >= 0]).tolist()}
        lent |= {origin for origins in shared.values() for origin, _ in origins}
        parts = [name, *(other for other in self._names if other in lent and other != name)]
        number_of = {part: number for number, part in enumerate(parts)}
        # What is no input counts from the end of the table: -1 is the last entry, and stays -1.
        renumbered = np.array([*(number_of.get(n, ZERO) for n in self._names), SHARED, MEAN, ZERO])
        return row_map(
            renumbered[source],
            at,
            [self._sides[part].rows for part in parts],
            {row: tuple((number_of[n], r) for n, r in o) for row, o in shared.items()},
        ), tuple(parts)

    def of_delta(self, name: str) -> RowMap:
        """Return the map of an adapter's difference: zero in the rows that it lacks."""
        own = self._own[name]
        mine = (own >= 0) & ~self._forced
        return row_map(np.where(mine, 0, ZERO), own, [self._sides[name].rows], {})

    def side(self, name: str) -> Side:
        """Return an input by its name."""
        return self._sides[name]

    def lost(self, name: str) -> list[str]:
        """Return an input's tokens that the result has no row for."""
        tokens = self._sides[name].tokens
        if tokens is None or self._target.ids is None:
            return []
        mine = self._sides[name].known(self._base) or {}
        if self._in_result[name] == len(mine):
            return []
        return [token for token in mine if token not in self._target.ids]
