"""Which rule decides."""

from __future__ import annotations

from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.rules import Rules, check_rules
from mergekit_lite.recipe import load

RECIPE = {
    "base": "b",
    "experts": {"math": {"model": "m"}},
    "steps": ["task_arithmetic"],
    "rules": [
        {"match": {"role": "attention"}, "take": "math"},
        {"match": {"layers": "2-"}, "set": {"weight": 2}},
        {"match": {"name": "*.bias"}, "drop": True},
        {"match": {"layers": "0-1,3"}, "steps": ["linear"]},
    ],
}


def test_the_last_action_wins_whatever_sets_come_after() -> None:
    rules = Rules(load(RECIPE))
    decision = rules.decide("model.layers.3.self_attn.q_proj.weight", 3, "attention.q")
    assert (decision.action, decision.winner, decision.matched) == ("steps", 3, (0, 1, 3))
    assert decision.sets == ({"weight": 2},)
    decision = rules.decide("model.layers.2.self_attn.q_proj.weight", 2, "attention.q")
    assert (decision.action, decision.take, decision.matched) == ("take", "math", (0, 1))
    decision = rules.decide("model.layers.2.mlp.up_proj.bias", 2, "mlp.up")
    assert (decision.action, decision.winner) == ("drop", 2)
    decision = rules.decide("model.norm.weight", None, "norm")
    assert (decision.action, decision.winner, decision.steps[0].op) == (
        "steps",
        None,
        "task_arithmetic",
    )


def test_rules_without_tensors_and_layers_past_the_end_are_found() -> None:
    rules = Rules(load(RECIPE))
    rules.decide("model.layers.0.self_attn.q_proj.weight", 0, "attention.q")
    findings = Findings()
    check_rules(rules, 2, findings, ["model.layers.0.self_attn.q_proj.weight"])
    assert [problem.what for problem in findings.problems] == [
        "the model has 2 layers (0-1), asked 2-",
        "the rule matches no tensor: `*.bias`",
        "the model has 2 layers (0-1), asked 0-1,3",
    ]
