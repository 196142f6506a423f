"""`tokenizer_source`, `tokenizer` and `chat_template` of a mergekit recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.compat.inputs import Models
from mergekit_lite.recipe.compat.nodes import mapping, scalar
from mergekit_lite.recipe.compat.references import References
from mergekit_lite.recipe.marks import Node, Problems, kind_of
from mergekit_lite.tokenizer.chat import NAMED

_WORDS = ("base", "union")
_TOKENIZER = ("source", "tokens", "pad_to_multiple_of")
_RULE = ("source", "force")
_SOURCE = ("kind", "model", "token", "token_id")


class VocabularyReader:
    """Reads what a recipe says about tokenizers.

    Args:
        references: reads the models' names.
        models: the models that are merged; a tokenizer can be of no other.
        problems: where to note what is wrong.
    """

    def __init__(self, references: References, models: Models, problems: Problems) -> None:
        self.references = references
        self.models = models
        self.problems = problems

    def read(self, entries: Mapping[str, Node]) -> dict[str, Node]:
        """Return our keys for what stands at the top of a recipe."""
        found: dict[str, Node] = {}
        short, long = entries.get("tokenizer_source"), entries.get("tokenizer")
        if short is not None and long is not None:
            what = "the recipe has both `tokenizer_source` and `tokenizer`"
            self.problems.add(what, long.key, "give one of them: `tokenizer: {source: ...}`")
        if long is not None:
            found["tokenizer"] = self._tokenizer(long)
        elif short is not None and (source := self._source(short)):
            found["tokenizer"] = mapping({"source": source}, short.mark)
        if (template := entries.get("chat_template")) is not None:
            found |= self._template(template)
        return found

    def _tokenizer(self, node: Node) -> Node:
        entries = self._known(node, _TOKENIZER, "tokenizer")
        given = entries.get("source")
        source = scalar("union", node.mark) if given is None else self._source(given)
        result = {"source": source} if source is not None else {}
        if "tokens" in entries:
            rules = {
                token: self._rule(token, rule)
                for token, rule in entries["tokens"].entries().items()
            }
            result["tokens"] = mapping(rules, entries["tokens"].mark)
        if "pad_to_multiple_of" in entries:
            result["pad_to_multiple_of"] = entries["pad_to_multiple_of"]
        return mapping(result, node.mark)

    def _source(self, node: Node) -> Node | None:
        """Return `base`, `union` or the name of a model."""
        return node if node.value in _WORDS else self._model(node)

    def _model(self, node: Node) -> Node | None:
        reference = self.references.read(node)
        if reference is None:
            return None
        name = self.models.find(reference)
        if name is None:
            what = f"`{reference.label}` is not one of the models that are merged"
            self.problems.add(what, node.mark, "list it under `models`, with weight 0 if need be")
            return None
        return scalar(name, node.mark)

    def _rule(self, token: str, node: Node) -> Node:
        owner = f"tokenizer.tokens.{token}"
        entries = self._known(node, _RULE, owner)
        result = {key: entry for key, entry in entries.items() if key == "force"}
        if (given := entries.get("source")) is not None:
            source = self._token_source(given, owner)
            result |= {"source": source} if source is not None else {}
        return mapping(result, node.mark)

    def _token_source(self, node: Node, owner: str) -> Node | None:
        if not isinstance(node.value, dict) or node.get("kind") is None:
            return self._model(node)
        entries = self._known(node, _SOURCE, f"{owner}.source")
        if entries.get("kind") is not None and entries["kind"].value == "zero":
            return scalar("zero", node.mark)
        model = self._model(entries["model"]) if "model" in entries else None
        if "model" not in entries:
            what = f"the source of `{owner.rpartition('.')[2]}` names no `model`"
            self.problems.add(
                what, node.mark, "write `{kind: model_token, model: ..., token: ...}`"
            )
        rest = {key: entry for key, entry in entries.items() if key not in ("model", "kind")}
        return mapping({"model": model, **rest}, node.mark) if model is not None else None

    def _template(self, node: Node) -> dict[str, Node]:
        value = node.value
        if not isinstance(value, str):
            what = f"`chat_template` must be text, not {kind_of(value)}"
            self.problems.add(what, node.mark, "write `auto`, `chatml`, or the template")
            return {}
        if value in NAMED and value in self.models.experts:
            # Here that name would mean the expert's template.
            return {"chat_template": node.with_value(NAMED[value].text)}
        words = ("auto", *NAMED)
        if value not in words and "{" not in value:
            listed = ", ".join(f"`{word}`" for word in words)
            hint = nearest(value, words) or f"write {listed}, or the template"
            self.problems.add(f"`{value}` is no chat template", node.mark, hint)
            return {}
        return {"chat_template": node}

    def _known(self, node: Node, keys: Sequence[str], owner: str) -> dict[str, Node]:
        """Return the entries under known keys and note the others."""
        if not isinstance(node.value, dict):
            what = f"`{owner}` must be a mapping, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, f"it takes {', '.join(f'`{key}`' for key in keys)}")
        for key, entry in node.entries().items():
            if key not in keys:
                listed = f"known here: {', '.join(f'`{name}`' for name in keys)}"
                hint = nearest(key, keys) or listed
                self.problems.add(f"unknown key `{key}` in `{owner}`", entry.key, hint)
        return {k: n for k, n in node.entries().items() if k in keys and n.value is not None}
