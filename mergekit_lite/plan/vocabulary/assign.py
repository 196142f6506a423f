"""Which stored row each row of the result is for each input.

A row that an input lacks is the base's; where the base lacks it too, it is the mean of the rows of
the experts that have it. So an input that lacks a token does not change the token's row in a
combination of differences, and in a mean of weights it stands for what the others say.
"""

from __future__ import annotations

from collections.abc import Mapping

from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.row_maps import FILLED, Place, RowMap, row_map
from mergekit_lite.plan.vocabulary.sides import Side
from mergekit_lite.plan.vocabulary.target import Target
from mergekit_lite.recipe.schema import Recipe, TokenSource

Origin = tuple[str, int]
"""An input's name and the number of a row that it has stored."""
Origins = tuple[Origin, ...]

_MADE_UP: Origins = (("", -1),)
_ZERO: Origins = ()


def own_rows(side: Side, base: Side, target: Target) -> list[int]:
    """Return for each row of the result the input's own row, -1 where it has none.

    Rows without a token are matched by number, if they are without a token in both.
    """
    found = [-1] * target.rows
    mine = side.known(base)
    if target.ids is None or mine is None:
        same = min(target.rows, side.rows)
        found[:same] = range(same)
        return found
    for token, row in target.ids.items():
        found[row] = mine.get(token, -1)
    used, named = set(mine.values()), set(target.ids.values())
    for row in range(min(target.rows, side.rows)):
        if row not in used and row not in named:
            found[row] = row
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
        self._own = {name: own_rows(side, self._base, target) for name, side in sides.items()}
        self._fallback = self._fallbacks()
        self._forced: dict[int, Origins] = {}
        self.made_up: list[int] = []
        self._name_sources(recipe, findings)
        if common:
            every = list(self._own.values())
            for row in range(target.rows):
                if any(own[row] < 0 for own in every):
                    self._forced.setdefault(row, self._fallback[row])
        named = set((target.ids or {}).values())
        self.made_up = [row for row in sorted(named) if self._fallback[row] == _MADE_UP]

    def _fallbacks(self) -> list[Origins]:
        """Return what a row is for an input that lacks it."""
        bases, experts = self._own["base"], [n for n in self._own if n != "base"]
        found: list[Origins] = []
        for row, own in enumerate(bases):
            if own >= 0:
                found.append((("base", own),))
                continue
            having = tuple((name, at) for name in experts if (at := self._own[name][row]) >= 0)
            found.append(having or _MADE_UP)
        return found

    def _name_sources(self, recipe: Recipe, findings: Findings) -> None:
        """Enter the sources that the recipe gives for single tokens."""
        ids = self._target.ids or {}
        for token, rule in recipe.tokenizer.tokens.items():
            row = ids.get(token)
            if row is None:
                continue
            if rule.source is not None:
                where = recipe.at("tokenizer", "tokens", token)
                origins = self._source(token, rule.source, where, findings)
                if origins is None:
                    continue
                self._fallback[row] = origins
            if rule.force:
                self._forced[row] = self._fallback[row]

    def _source(
        self, token: str, source: str | TokenSource, where: str, findings: Findings
    ) -> Origins | None:
        if source == "zero" or (isinstance(source, TokenSource) and source.kind == "zero"):
            return _ZERO
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
        return ((side.name, row),)

    def of(self, name: str) -> tuple[RowMap, tuple[str, ...]]:
        """Return the map of an input, and the inputs that its parts are, itself first."""
        parts = {name: 0}
        rows: list[tuple[Place, ...]] = []
        for row, own in enumerate(self._own[name]):
            origins = self._forced.get(row)
            if origins is None:
                origins = ((name, own),) if own >= 0 else self._fallback[row]
            if origins == _MADE_UP:
                rows.append(FILLED)
                continue
            rows.append(tuple((parts.setdefault(n, len(parts)), at) for n, at in origins))
        stored = [self._sides[part].rows for part in parts]
        return row_map(rows, stored), tuple(parts)

    def of_delta(self, name: str) -> RowMap:
        """Return the map of an adapter's difference: zero in the rows that it lacks."""
        own = self._own[name]
        rows = [
            ((0, at),) if at >= 0 and row not in self._forced else () for row, at in enumerate(own)
        ]
        return row_map(rows, [self._sides[name].rows])

    def side(self, name: str) -> Side:
        """Return an input by its name."""
        return self._sides[name]

    def lost(self, name: str) -> list[str]:
        """Return an input's tokens that the result has no row for."""
        tokens = self._sides[name].tokens
        if tokens is None or self._target.ids is None:
            return []
        mine = self._sides[name].known(self._base) or {}
        return [token for token in mine if token not in self._target.ids]
