"""The vocabulary of one input: its tokens, and the tensors that have a row for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from mergekit_lite.plan.inputs import View
from mergekit_lite.tokenizer import Tokens, read_tokens


@dataclass
class Side:
    """One input, as far as its vocabulary is concerned.

    Attributes:
        view: the input.
        rows: how many rows its tensors of tokens have.
    """

    view: View
    rows: int

    @property
    def name(self) -> str:
        return self.view.name

    @cached_property
    def tokens(self) -> Tokens | None:
        """Its tokens, None where its files do not tell.

        Raises:
            DataError: a file of the tokenizer is damaged.
        """
        return read_tokens(self.view.model.root)

    def known(self, base: Side) -> Mapping[str, int] | None:
        """Return token -> row of the tokens that have a row, the base's where its own are unknown.

        None where neither is known.
        """
        tokens = self.tokens or base.tokens
        if tokens is None:
            return None
        if tokens.highest < self.rows:
            return tokens.ids
        return {token: row for token, row in tokens.ids.items() if row < self.rows}


def side_of(view: View, names: Iterable[str], base: Side | None = None) -> Side | None:
    """Return an input's side; None if it has nothing for any token, or does not agree with itself.

    An adapter without rows of its own stands on the base's.
    """
    heights = {shape[0] for name in names if (shape := view.stored_shape(name))}
    if len(heights) != 1 or view.settled:
        return None
    side = Side(view, heights.pop())
    if base is not None and view.model.adapter is not None and side.rows == base.rows:
        side.__dict__["tokens"] = base.tokens
    return side
