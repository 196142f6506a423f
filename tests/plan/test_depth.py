"""What a config says layer by layer, after layers were stacked anew."""

from __future__ import annotations

from typing import Any

import pytest

from mergekit_lite.plan.depth import Restack, restacked
from mergekit_lite.plan.findings import Findings

DOUBLED = [("base", 0), ("base", 1), ("base", 0), ("base", 1), ("base", 2), ("base", 3)]


def changes(
    config: dict[str, Any], layers: list[tuple[str, int]] = DOUBLED, **others: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    findings = Findings()
    configs = {"base": config, **others}
    depth = {name: 4 for name in configs}
    restack = Restack("model.layers", (), depth, layers, configs)
    made = restacked(restack, findings, "recipe.yaml:3:1")
    return made, [str(problem) for problem in findings.all_problems()]


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_layers", "n_layers"])
def test_every_spelling_of_the_count(key: str) -> None:
    assert changes({key: 4, "hidden_size": 8}) == ({key: 6}, [])


def test_lists_by_layer_follow_their_layers() -> None:
    config = {
        "num_hidden_layers": 4,
        "layer_types": ["full", "sliding", "linear", "other"],
        "no_rope_layers": [1, 0, 1, 1],
        "intermediate_size": [1, 2, 3, 4],
        "hybrid_override_pattern": "M-*E",
        "eos_token_id": [1, 2, 3, 4],
        "rope_parameters": {"factor": 2},
    }
    made, problems = changes(config)
    assert problems == []
    assert made == {
        "num_hidden_layers": 6,
        "layer_types": ["full", "sliding", "full", "sliding", "linear", "other"],
        "no_rope_layers": [1, 0, 1, 0, 1, 1],
        "intermediate_size": [1, 2, 1, 2, 3, 4],
        "hybrid_override_pattern": "M-M-*E",
    }


def test_lists_of_indices_are_renumbered() -> None:
    config = {"num_hidden_layers": 4, "mlp_only_layers": [1, 3], "full_attn_idxs": [0, 1, 2, 3]}
    made, problems = changes(config)
    assert problems == []
    assert made["mlp_only_layers"] == [1, 3, 5]
    assert made["full_attn_idxs"] == [0, 1, 2, 3, 4, 5]


def test_entries_come_from_the_config_of_the_donor() -> None:
    base = {"num_hidden_layers": 4, "layer_types": ["a"] * 4, "mlp_only_layers": []}
    math = {"num_hidden_layers": 4, "layer_types": list("wxyz"), "mlp_only_layers": [3]}
    made, problems = changes(base, [("base", 0), ("math", 2), ("math", 3)], math=math)
    assert problems == []
    assert made == {
        "num_hidden_layers": 3, "layer_types": ["a", "y", "z"], "mlp_only_layers": [2],
    }  # fmt: skip


def test_the_text_part_of_a_config() -> None:
    text = {"num_hidden_layers": 4, "layer_types": list("abcd"), "vocab_size": 9}
    made, problems = changes({"text_config": text, "vision_config": {"num_hidden_layers": 4}})
    assert problems == []
    assert made == {
        "text_config": {"num_hidden_layers": 6, "layer_types": list("ababcd"), "vocab_size": 9}
    }


@pytest.mark.parametrize(
    "more",
    [
        {"layer_types": ["full", "sliding"]},
        {"attention_types": [[["global", "local"], 2]]},
        {"sliding_window_pattern": 3},
        {"num_kv_shared_layers": 2},
        {"first_k_dense_replace": 1},
    ],
)
def test_what_cannot_be_rewritten_is_refused_by_name(more: dict[str, Any]) -> None:
    _, (problem,) = changes({"num_hidden_layers": 4, **more})
    assert f"`{next(iter(more))}` of the config cannot be rewritten" in problem
    assert "recipe.yaml:3:1" in problem


def test_periods_that_stay_and_periods_that_a_list_replaces() -> None:
    assert changes({"num_hidden_layers": 4, "sliding_window_pattern": 2})[1] == []
    listed = {"num_hidden_layers": 4, "sliding_window_pattern": 3, "layer_types": list("abcd")}
    assert changes(listed)[1] == []


def test_leading_layers_are_counted_again() -> None:
    config = {"num_hidden_layers": 4, "first_k_dense_replace": 1}
    layers = [("base", 0), ("base", 0), ("base", 2), ("base", 3)]
    made, problems = changes(config, layers)
    assert (made["first_k_dense_replace"], problems) == (2, [])


def test_a_config_without_a_count_is_refused() -> None:
    _, (problem,) = changes({"hidden_size": 8})
    assert "names no number of layers" in problem


def test_the_same_layers_change_nothing() -> None:
    config = {"num_hidden_layers": 4, "sliding_window_pattern": 3}
    assert changes(config, [("base", n) for n in range(4)]) == ({}, [])
