"""Whose tokenizer goes with the result, and where rows of single tokens come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from mergekit_lite.recipe.schema.fields import Part


class TokenSource(Part):
    """A row to take for a token."""

    model: str | None = None
    """`base` or an expert's name."""
    token: str | None = None
    """The token of that model whose row is taken; by default the token of the same name."""
    token_id: Annotated[int, Field(ge=0)] | None = None
    """The number of the row, in place of `token`."""
    kind: Literal["zero", "model_token"] | None = None
    """`zero`: a row of zeros; `model_token`: the row that the other keys name."""


class TokenRule(Part):
    """Where the rows of one token come from."""

    source: str | TokenSource | None = None
    """`base`, an expert's name, `zero`, or `{model, token}` or `{model, token_id}`: the row of
    every model that lacks the token."""
    force: bool = False
    """Use the source for the models that have the token, too: the result's row is the source's."""


class Tokenizer(Part):
    """Whose tokenizer goes with the result, and where rows of single tokens come from."""

    source: str | None = None
    """`base`: the base's; `union`: the base's with the tokens that experts have and it lacks;
    an expert's name: that expert's, with its ids. Rows are matched by token."""
    tokens: Mapping[str, TokenRule] = {}
    """Token -> where its row comes from; a token that the tokenizer lacks is added to it."""
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None
    """The number of rows is raised to a multiple of this; new rows are the mean of the others."""
