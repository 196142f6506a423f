"""Where a key belongs that stands in the wrong place."""

from __future__ import annotations

from collections.abc import Mapping

from mergekit_lite.ops import OpSpec
from mergekit_lite.recipe.schema import (
    Bound,
    Expect,
    Expert,
    Match,
    Moe,
    MoeExpert,
    Output,
    Recipe,
    Rule,
    Tokenizer,
)

NOT_YET = {
    "output.push": "uploading the result",
}
"""Keys of the recipe language that this version refuses, and what they are for."""

OTHER_TOOLS = {
    "random_seed": "seed",
    "base_model": "base",
    "models": "experts",
    "merge_method": "steps",
    "out_dtype": "output.dtype",
    "torch_dtype": "output.dtype",
    "out_shard_size": "output.shard_size",
    "max_shard_size": "output.shard_size",
    "tokenizer_source": "tokenizer.source",
    "variables": "vars",
    "method": "steps",
}
"""What other tools call things, and where those stand in a recipe."""


def keys_of(model: type) -> list[str]:
    """Return the keys that a user may write into one of the schema's models."""
    hidden = {"where", "name", "folder", "child"} if model is not Match else set()
    return [name for name in model.model_fields if name not in hidden]  # type: ignore[attr-defined]


TOP = [*keys_of(Recipe), "extends", "vars"]
_HOMES: dict[str, str] = {
    **{key: f"in a bound: `expect: {{bounds: [{{{key}: ...}}]}}`" for key in keys_of(Bound)},
    **{key: f"under `expect`: `expect: {{{key}: ...}}`" for key in keys_of(Expect)},
    **{key: f"under `search`: `search: {{{key}: ...}}`" for key in ("objectives", "test")},
    **{key: f"in a rule: `rules: [{{match: ..., {key}: ...}}]`" for key in keys_of(Rule)},
    "stack": "in a slice: `slices: [{layers: ..., stack: ...}]`",
    **{key: f"in a rule's match: `match: {{{key}: ...}}`" for key in ("layers", "role")},
    **{
        key: f"with an expert of `moe`: `{{expert: NAME, {key}: ...}}`"
        for key in keys_of(MoeExpert)
    },
    **{key: f"under `moe`: `moe: {{{key}: ...}}`" for key in keys_of(Moe)},
    **{key: f"with an expert: `experts: {{NAME: {{{key}: ...}}}}`" for key in keys_of(Expert)},
    **{key: f"under `tokenizer`: `tokenizer: {{{key}: ...}}`" for key in keys_of(Tokenizer)},
    **{key: f"under `output`: `output: {{{key}: ...}}`" for key in keys_of(Output)},
    **{key: f"at the top of the recipe: `{key}: ...`" for key in TOP},
}


def belongs(key: str, specs: Mapping[str, OpSpec]) -> str:
    """Return where a misplaced key belongs ("`seed` belongs ..."), or an empty string."""
    if key in OTHER_TOOLS:
        return f"here this is called `{OTHER_TOOLS[key]}`"
    if key in _HOMES:
        return f"`{key}` belongs {_HOMES[key]}"
    if key in specs:
        return f"`{key}` is an op: `steps: [{{{key}: ...}}]`"
    owners = [name for name, spec in specs.items() if key in spec.parameters]
    if not owners and key == "weights":
        owners = [name for name, spec in specs.items() if "weights" in spec.specials]
    if owners:
        listed = ", ".join(f"`{name}`" for name in sorted(owners)[:4])
        example = sorted(owners)[0]
        return f"`{key}` is a parameter of {listed}: `steps: [{{{example}: {{{key}: ...}}}}]`"
    return ""
