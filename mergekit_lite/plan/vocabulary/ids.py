"""What configs say about tokens by number: the size of the vocabulary, and special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.names import plural
from mergekit_lite.plan.vocabulary.compare import few
from mergekit_lite.plan.vocabulary.sides import Side
from mergekit_lite.plan.vocabulary.target import Target
from mergekit_lite.recipe.schema import Recipe
from mergekit_lite.tokenizer.files import read_object
from mergekit_lite.tokenizer.read import highest_added

GENERATION = "generation_config.json"

_ENDINGS = ("_token_id", "_token_index")


def renumber(recipe: Recipe, base: Side, target: Target, findings: Findings) -> dict[str, Any]:
    """Enter into the base what its config.json must change; return changes of generation settings.

    With another model's tokenizer, the numbers of special tokens are that model's; one that its
    files do not give is that of the same token.
    """
    changes = base.view.changes
    config = base.view.model.config
    changes.pop("vocab_size", None)
    if configs.has(config, "vocab_size") and configs.value(config, "vocab_size") != target.rows:
        changes["vocab_size"] = target.rows
    if target.owner is base:
        return {}
    owner = target.owner.view.model
    found, lost = id_changes(config, owner.config, base, target)
    changes.update(found)
    mine = read_object(base.view.model.root / GENERATION)
    generation, more = id_changes(mine, read_object(owner.root / GENERATION), base, target)
    if lost := {**more, **lost}:
        listed = ", ".join(f"`{key}` {value}" for key, value in lost.items())
        findings.warn(
            f"the base's configs name tokens that the result's tokenizer has not: {listed}",
            recipe.at("tokenizer", "source"),
        )
    return generation


def id_changes(
    config: configs.Config, owners: configs.Config, base: Side, target: Target
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the entries of a config that number tokens and change, and those that mean nothing.

    Args:
        config: of the base.
        owners: of the model whose tokenizer the result has.
        base: whose numbers are in `config`.
        target: the result's vocabulary.
    """
    changes, lost = {}, {}
    for key, value in token_ids(config).items():
        new = configs.value(owners, key)
        new = moved(value, base, target) if new is None else new
        if new is None:
            lost[key] = value
        elif new != value:
            changes[key] = new
    return changes, lost


def token_ids(config: configs.Config) -> dict[str, Any]:
    """Return the entries of a config, or of its language model's part, that number tokens."""
    levels = [config or {}]
    levels += [part for part in (config or {}).values() if isinstance(part, Mapping)]
    return {
        key: value
        for level in levels
        for key, value in level.items()
        if key.endswith(_ENDINGS) and isinstance(value, int | list) and not isinstance(value, bool)
    }


def moved(value: Any, base: Side, target: Target) -> Any:
    """Return a number, or list of numbers, of the base's tokens as the result numbers them."""
    if isinstance(value, list):
        found = [moved(entry, base, target) for entry in value]
        return found if None not in found else None
    if value == -1:  # the usual way of saying that there is no such token
        return value
    token = base.tokens.by_id.get(value) if base.tokens else None
    return (target.ids or {}).get(token) if token is not None else None


def beyond(recipe: Recipe, base: Side, findings: Findings) -> None:
    """Note a base whose tokenizer has tokens without a row."""
    highest = highest_added(base.view.model.root)
    if highest < base.rows or base.tokens is None:
        return
    tokens = [token for token, row in base.tokens.ids.items() if row >= base.rows]
    if not tokens:
        return
    what = (
        f"the base's tokenizer has {plural(len(tokens), 'token')} without a row ({few(tokens)}):"
        f" the embedding has {base.rows} rows, the highest id is {base.tokens.highest}"
    )
    if recipe.compat == "mergekit":
        findings.warn(what, recipe.at("base"))
    else:
        findings.problem(
            what,
            recipe.at("base"),
            "`vocab: base_rows` adds rows for them, each the mean of the others; some runtimes"
            " refuse a model with ids beyond its rows",
        )
