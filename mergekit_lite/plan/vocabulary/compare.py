"""In which way an expert's vocabulary differs from the base's, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergekit_lite.plan.names import plural
from mergekit_lite.plan.vocabulary.sides import Side
from mergekit_lite.tokenizer import same_files

_SHOWN = 5


@dataclass(frozen=True)
class Difference:
    """How the vocabularies of two inputs differ.

    Attributes:
        rows: how many rows the expert has.
        base_rows: how many rows the base has.
        known: the tokenizers of both could be read.
        new: tokens with a row that the base lacks.
        lacking: tokens with a row of the base that the expert lacks.
        moved: tokens that both have, with other ids.
        clashing: ids that stand for one token here and for another one there.
    """

    rows: int
    base_rows: int
    known: bool
    new: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    moved: int = 0
    clashing: int = 0

    @property
    def stops(self) -> bool:
        """Whether rows cannot be merged one by one, as they stand."""
        return self.rows != self.base_rows or bool(self.clashing)

    def __str__(self) -> str:
        more = self.rows - self.base_rows
        count = f"{self.rows} rows, the base {self.base_rows}"
        if not self.known:
            return f"{count}; without tokenizer files padding cannot be told from real tokens"
        if not (self.new or self.lacking or self.moved):
            many = plural(abs(more), "row")
            side = "more" if more > 0 else "fewer"
            return f"{count}: {many} {side}, padding only, the tokens are the same"
        parts = []
        if self.new:
            parts.append(f"{plural(len(self.new), 'token')} that the base lacks ({few(self.new)})")
        if self.lacking:
            parts.append(f"not {plural(len(self.lacking), 'token')} of it ({few(self.lacking)})")
        if self.moved:
            parts.append(f"{plural(self.moved, 'token')} under other ids")
        start = f"{count}: real tokens differ, it" if more else "real tokens differ: it"
        return f"{start} has {' and '.join(parts)}"


def compare(side: Side, base: Side) -> Difference:
    """Return how an expert's vocabulary differs from the base's.

    Raises:
        DataError: a tokenizer's file is damaged.
    """
    roots = side.view.model.root, base.view.model.root
    if side.rows == base.rows and roots[0].is_dir() and roots[1].is_dir() and same_files(*roots):
        return Difference(side.rows, base.rows, known=True)
    if side.tokens is None or base.tokens is None:
        return Difference(side.rows, base.rows, known=False)
    mine, theirs = side.known(base) or {}, base.known(base) or {}
    names = base.tokens.by_id
    clashing = sum(1 for t, row in mine.items() if row in names and names[row] != t)
    return Difference(
        rows=side.rows,
        base_rows=base.rows,
        known=True,
        new=tuple(token for token in mine if token not in base.tokens.ids),
        lacking=tuple(token for token in theirs if token not in side.tokens.ids),
        moved=sum(1 for t, row in mine.items() if theirs.get(t, row) != row),
        clashing=clashing,
    )


def few(tokens: Sequence[str]) -> str:
    """Return the first of many tokens, as a message quotes them."""
    listed = ", ".join(f"`{token}`" for token in tokens[:_SHOWN])
    rest = len(tokens) - _SHOWN
    return f"{listed} and {rest} more" if rest > 0 else listed


def choices(difference: Difference) -> str:
    """Return the three rules to choose from, each with what it does here."""
    new = len(difference.new)
    more = f"also rows for {plural(new, 'token')} that the base lacks" if new else "no row is lost"
    return (
        "choose one: `vocab: base_rows` (the base's rows; an expert counts where it has the"
        " token), `vocab: common_rows` (only rows of tokens that all have are merged, the others"
        f" stay the base's) or `vocab: union` ({more})"
    )
