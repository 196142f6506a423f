"""Entries of a routed model's config that loaders trip over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mergekit_lite.moe.compat.loaders import LLAMA_CPP_EXPERTS, LOADERS, UNGROUPED
from mergekit_lite.plan.configs import Config, model_type, value

Told = tuple[str, Any, str, str]
"""Loader, verdict, what, hint."""


def entry_findings(config: Mapping[str, Any], experts: int, per_token: int) -> Iterator[Told]:
    """Yield what entries make loaders do."""
    family = model_type(config)
    nulls = value(config, "num_null_experts")
    choices = rows_of(config, experts) + (nulls if isinstance(nulls, int) else 0)
    if per_token > choices:
        for loader in LOADERS:
            yield loader, "fails", f"tokens cannot pass {per_token} of {choices} experts", ""
    yield from _counts(config, family, experts)
    yield from _groups(config, experts, per_token)
    if family == "deepseek_v3":
        wanted = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
        lacking = [key for key, right in wanted.items() if value(config, key) != right]
        if lacking:
            yield (
                "vllm",
                "differs",
                f"without {' and '.join(f'`{key}`' for key in lacking)} it takes a softmax and has"
                " no bias in the choice of experts",
                "add " + ", ".join(f'"{key}": "{wanted[key]}"' for key in lacking),
            )
    yield from _heads(config, family)
    if family == "hunyuan_v1_moe":
        yield from _hunyuan(config, per_token)
    if value(config, "output_router_logits") is True:
        yield (
            "transformers",
            "same",
            "`output_router_logits` is true, which slows it and changes what it returns",
            'set "output_router_logits": false for inference',
        )
    if experts > LLAMA_CPP_EXPERTS:
        yield "llama.cpp", "fails", f"takes at most {LLAMA_CPP_EXPERTS} experts", ""


def rows_of(config: Config, experts: int) -> int:
    """Return how many rows routers have: as many as experts, but where rows share some."""
    mapped = value(config, "expert_map")
    if not isinstance(mapped, list) or not mapped:
        return experts
    each = [len(rows) for rows in mapped if isinstance(rows, list)]
    return max(each) if each else len(mapped)


def _counts(config: Mapping[str, Any], family: str, experts: int) -> Iterator[Told]:
    keys = {"num_experts", "num_local_experts", "n_routed_experts"}
    named = {key: value(config, key) for key in keys if value(config, key) is not None}
    if len({*named.values()}) > 1:
        for loader in LOADERS:
            text = ", ".join(f"`{key}` {number}" for key, number in sorted(named.items()))
            yield loader, "fails", f"the config contradicts itself: {text}", "write one number"
    needed = {"qwen3_moe": "num_experts", "mixtral": "num_local_experts"}.get(family)
    if needed is not None and needed not in named:
        loader = "transformers" if family == "qwen3_moe" else "llama.cpp"
        what = f"the count is not under `{needed}`, where "
        what += (
            "transformers 4 looks for it and else takes 128"
            if family == "qwen3_moe"
            else "its converter looks for it"
        )
        yield loader, "fails", what, f'add "{needed}": {experts}'


def _heads(config: Mapping[str, Any], family: str) -> Iterator[Told]:
    """Yield what becomes of heads that share keys and values."""
    heads, keys = value(config, "num_attention_heads"), value(config, "num_key_value_heads")
    if family in UNGROUPED and keys not in (None, heads):
        yield (
            "llama.cpp",
            "fails",
            f"takes `{family}` only with as many heads of keys as of queries, and there are {keys}"
            f" and {heads} (was run)",
            "use another target" if family == "dots1" else "",
        )


def _hunyuan(config: Mapping[str, Any], per_token: int) -> Iterator[Told]:
    if not isinstance(value(config, "moe_topk"), list):
        yield (
            "llama.cpp",
            "fails",
            "`moe_topk` is no list, and its converter takes the first entry of one",
            f'write "moe_topk" as a list with {per_token} for each layer',
        )
    if per_token == 1:
        yield (
            "vllm",
            "differs",
            "does not make the weight of a single expert 1, as the others do (was read in its"
            " source)",
            "let tokens pass two experts or more",
        )


def _groups(config: Mapping[str, Any], experts: int, per_token: int) -> Iterator[Told]:
    groups, chosen = value(config, "n_group"), value(config, "topk_group")
    if not isinstance(groups, int) or groups <= 1:
        return
    each = experts // groups
    wrong = ""
    if experts % groups:
        wrong = f"{experts} experts do not make {groups} equal groups (`n_group`)"
    elif isinstance(chosen, int) and per_token > chosen * each:
        wrong = f"{per_token} experts a token do not fit into {chosen} groups of {each}"
    if wrong:
        for loader in LOADERS:
            yield loader, "fails", wrong, 'set "n_group" and "topk_group" to 1'
