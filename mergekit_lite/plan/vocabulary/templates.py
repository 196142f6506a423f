"""Whose chat template the result has, and which inputs have another."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mergekit_lite.errors import DataError
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View, placed
from mergekit_lite.recipe.schema import Recipe
from mergekit_lite.tokenizer import read_tokens
from mergekit_lite.tokenizer.chat import NAMED
from mergekit_lite.tokenizer.templates import read_template, same_template

AUTO = "auto"


def template_of(
    recipe: Recipe, found: Mapping[str, View], tokenizer: Mapping[str, Any], findings: Findings
) -> dict[str, Any]:
    """Return the chat template to write; nothing where the one that comes along is right.

    The template that comes along is that of the model whose tokenizer the result has. Inputs with
    another one are told of, unless the recipe chooses.

    Args:
        recipe: what is wanted.
        found: the base and the experts.
        tokenizer: how the tokenizer of the result is made.
        findings: where problems are noted.
    """
    wish = recipe.chat_template
    owner = _owner(recipe)
    where = recipe.at("chat_template") if wish else recipe.at("base")
    try:
        texts = {name: read_template(view.model.root) for name, view in found.items()}
    except DataError as error:
        findings.problems += placed(error.problems, where)
        return {}
    if wish is None:
        _report(texts, owner, where, findings)
        return {"text": texts[owner]} if owner != "base" and texts.get(owner) else {}
    if "{" in wish:
        return {"text": wish}
    if wish in NAMED and wish not in texts:
        _spelt_out(wish, found[owner], tokenizer, where, findings)
        return {"text": NAMED[wish].text}
    name = _most(texts) if wish == AUTO else wish
    text = texts.get(name or "")
    if text is None:
        whose = "no input" if wish == AUTO else f"`{wish}`"
        findings.problem(
            f"{whose} has {'a' if wish == AUTO else 'no'} chat template",
            where,
            "name an input that has one or a known format, or write the template's text",
        )
        return {}
    return {"text": text} if (name, owner) != ("base", "base") else {}


def _spelt_out(
    name: str, owner: View, tokenizer: Mapping[str, Any], where: str, findings: Findings
) -> None:
    """Warn of tokens that a template writes and the tokenizer of the result has not."""
    if not NAMED[name].tokens:
        return
    try:
        known = read_tokens(owner.model.root)
    except DataError as error:
        findings.problems += placed(error.problems, where)
        return
    edits = tokenizer.get("additions", {}).get("edits", ())
    text = "".join(new for _, _, new in edits)
    lacking = [
        token
        for token in NAMED[name].tokens
        if known and token not in known.ids and json.dumps(token) not in text
    ]
    if lacking:
        listed = " and ".join(f"`{token}`" for token in lacking)
        findings.warn(
            f"the chat template `{name}` writes {listed}, which the result's tokenizer spells out"
            " in pieces; `tokenizer: {tokens: ...}` adds tokens",
            where,
        )


def _owner(recipe: Recipe) -> str:
    source = recipe.tokenizer.source
    return source if source not in (None, "base", "union") else "base"


def _most(texts: Mapping[str, str | None]) -> str | None:
    """Return the first input that has the template most inputs have."""
    counts = Counter(text.strip() for text in texts.values() if text)
    if not counts:
        return None
    best = max(counts.values())
    return next(n for n, text in texts.items() if text and counts[text.strip()] == best)


def _report(texts: Mapping[str, str | None], owner: str, where: str, findings: Findings) -> None:
    mine = texts.get(owner) or texts["base"]
    others = [
        name
        for name, text in texts.items()
        if name not in ("base", owner) and text and not same_template(text, mine)
    ]
    if not others:
        return
    listed = ", ".join(f"`{name}`" for name in others)
    whose = "the base's" if owner == "base" else f"that of `{owner}`"
    has = f"is {whose}" if mine else "is none, as the base has none"
    findings.warn(
        f"{listed} {'have' if len(others) > 1 else 'has'} another chat template: the result's"
        f" {has}; `chat_template: {others[0]}` takes another",
        where,
    )
