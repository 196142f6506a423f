"""The part of a recipe that is about vocabularies: `tokenizer`, `vocab` and `chat_template`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.marks import Node, Problems, kind_of, show
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.schema import BASE, Tokenizer, TokenRule, TokenSource
from mergekit_lite.tokenizer.chat import NAMED

UNION = "union"
ZERO = "zero"
AUTO = "auto"

Known = Callable[[Node, list[str], str], dict[str, Node]]
"""Returns the entries under known keys, noting the others."""


class TokenizerReader:
    """Reads what a recipe says about vocabularies.

    Args:
        known: sorts out unknown keys.
        experts: names of the recipe's experts.
        problems: where problems are noted.
    """

    def __init__(self, known: Known, experts: Sequence[str], problems: Problems) -> None:
        self._known, self._problems = known, problems
        self._names = [BASE, *experts]

    def read(self, node: Node) -> Any:
        """Return plain data for `Tokenizer`."""
        if not isinstance(node.value, dict):
            return node.plain()
        entries = self._known(node, keys_of(Tokenizer), "tokenizer")
        data = {key: value.plain() for key, value in entries.items()}
        if "source" in entries:
            self._name(entries["source"], "tokenizer.source", (UNION,))
        if isinstance(data.get("tokens"), dict):
            listed = entries["tokens"].entries()
            data["tokens"] = {token: self._rule(token, rule) for token, rule in listed.items()}
        return data

    def check(self, vocab: Node | None, tokenizer: Node | None, template: Node | None) -> None:
        """Note what does not go together, and a chat template of nobody."""
        source = tokenizer.get("source") if tokenizer is not None else None
        rule = vocab.value if vocab is not None else None
        if vocab is not None and source is not None and (rule == UNION) != (source.value == UNION):
            self._problems.add(
                f"`vocab: {show(rule)}` contradicts `tokenizer: {{source: {show(source.value)}}}`",
                vocab.mark,
                "leave one of the two out: a union has the tokenizer `union`, and no other has",
            )
        if template is not None and isinstance(template.value, str) and "{" not in template.value:
            words = (AUTO, *NAMED)
            self._name(template, "chat_template", words, "or the text of a template, with `{{`")

    def _rule(self, token: str, node: Node) -> Any:
        owner = f"tokenizer.tokens.{token}"
        if not isinstance(node.value, dict):
            if isinstance(node.value, str):
                self._name(node, owner, (ZERO,))
                return {"source": node.value}
            what = f"`{owner}` must be a mapping, not {kind_of(node.value)}"
            self._problems.add(what, node.mark, f'write `"{token}": {{source: base}}`')
            return {}
        # The keys of a source say by themselves what they are.
        entries = self._known(node, keys_of(TokenRule), owner)
        data = {key: value.plain() for key, value in entries.items()}
        source = entries.get("source")
        if source is not None and isinstance(source.value, dict):
            data["source"] = self._source(source, f"{owner}.source")
        elif source is not None and isinstance(source.value, str):
            self._name(source, f"{owner}.source", (ZERO,))
        return data

    def _source(self, node: Node, owner: str) -> Any:
        entries = self._known(node, keys_of(TokenSource), owner)
        kind = entries["kind"].value if "kind" in entries else None
        if kind == ZERO:
            return ZERO
        if "model" not in entries:
            self._problems.add(f"`{owner}` names no model", node.mark, "write `model: NAME`")
        else:
            self._name(entries["model"], f"{owner}.model", ())
        if {"token", "token_id"} <= entries.keys():
            what = f"`{owner}` has both `token` and `token_id`"
            self._problems.add(what, node.mark, "give one of them")
        return {key: value.plain() for key, value in entries.items()}

    def _name(self, node: Node, owner: str, words: Sequence[str], more: str = "") -> None:
        """Note a value that is neither an input nor one of `words`."""
        if not isinstance(node.value, str):
            return  # the schema says so
        allowed = [*self._names, *words]
        if node.value not in allowed:
            listed = ", ".join(f"`{name}`" for name in allowed)
            hint = nearest(node.value, allowed) or f"known here: {listed}"
            what = f"`{owner}: {show(node.value)}` is no input of this recipe"
            self._problems.add(what, node.mark, f"{hint}, {more}" if more else hint)
