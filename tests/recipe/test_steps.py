"""Chains and rules against the op specs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mergekit_lite.errors import Problem
from mergekit_lite.recipe import Match, Recipe

Read = Callable[..., Recipe]
Refused = Callable[..., list[Problem]]
HEAD = "base: ./b\nexperts: {math: ./m, code: ./c}\n"


@pytest.mark.parametrize(
    ("steps", "column", "what", "hint"),
    [
        ("[tise]", 9, "unknown op `tise`", "did you mean `ties`?"),
        ("[dare-ties]", 9, "unknown op `dare-ties`", "did you mean `dare_ties`?"),
        ("[xyzzy]", 9, "unknown op `xyzzy`", "shows all 13 ops"),
        ("ties", 8, "steps must be a list of ops, not text", "write `steps: [ties]`"),
        ("{ties: {}}", 8, "steps must be a list of ops, not a mapping", ""),
        ("[]", 8, "the list of steps is empty", "name at least one op"),
        ("[[ties]]", 9, "a step is an op, not a list", "`- ties`"),
        ("[3]", 9, "a step is an op, not a number", ""),
        ("[{ties: , density: 1}]", 9, "a step is one op, this one has 2 keys", "indent"),
        ("[{ties: 0.2}]", 16, "parameters of `ties` must be a mapping, not a number", "density"),
        ("[{ties: {densty: 1}}]", 17, "`ties` has no parameter `densty`", "`density`?"),
        ("[{ties: {seed: 1}}]", 17, "`ties` has no parameter `seed`", "at the top of the"),
        ("[{ties: {random_seed: 1}}]", 17, "no parameter `random_seed`", "called `seed`"),
        ("[{ties: {normalize: true}}]", 17, "no parameter `normalize`", "of `linear`"),
        ("[{ties: {xyz: 1}}]", 17, "no parameter `xyz`", "parameters of `ties`: `density`"),
        ("[{ties: {density: 0}}]", 26, "`density` of `ties` is 0, outside", "0 < density <= 1"),
        ("[{ties: {density: -2e-1}}]", 26, "is -0.2, outside its range", "0 < density <= 1"),
        ("[{ties: {density: .inf}}]", 26, "must be a finite number, not inf", "allowed is 0 <"),
        ("[{ties: {density: true}}]", 26, "must be a number, not `true`", "density <= 1"),
        ("[{ties: {density: }}]", 25, "must be a number, not nothing", ""),
        ("[{ties: {density: [0.1, 2]}}]", 32, "`density` of `ties` is 2, outside", ""),
        ("[{ties: {density: [a]}}]", 27, "must be a number, not `a`", ""),
        ("[{ties: {density: [[1]]}}]", 27, "must be a number, not a list", ""),
        ("[{ties: {density: []}}]", 26, "the gradient for `density` is empty", ""),
        ("[{ties: {density: {mat: 1}}}]", 27, "there is no expert `mat`", "`math`?"),
        ("[{ties: {density: {math: 3}}}]", 33, "`density` of `ties` is 3, outside", ""),
        ("[{ties: {density: {math: [0.1, 3]}}}]", 39, "is 3, outside its range", ""),
        ("[{ties: {density: {}}}]", 26, "the map for `density` is empty", ""),
        ("[{ties: {elect: mas}}]", 24, "must be `mass` or `count`, not `mas`", "`mass`?"),
        ("[{ties: {elect: [mass]}}]", 24, "cannot vary over depth", "`mass` or `count`"),
        ("[{ties: {elect: {math: mass}}}]", 24, "one value, not one for each expert", ""),
        ("[{linear: {normalize: yes}}]", 30, "must be true or false, not `yes`", ""),
        ("[{median: {rounds: 2.5}}]", 27, "must be a whole number, not `2.5`", ""),
        ("[{take: {expert: mth}}]", 25, "there is no expert `mth`", "`math`?"),
        ("[{take: {expert: 3}}]", 25, "must be the name of an expert or `base`", ""),
        ("[take]", 9, "`take` needs `expert`", ""),
        ("[{linear: {weights: 3}}]", 28, "must be a map by expert, not a number", ""),
        ("[{linear: {weights: {chat: 3}}}]", 29, "there is no expert `chat`", "`math`"),
        ("[{linear: {weights: {math: x}}}]", 35, "`weights` of `linear` must be a number", ""),
        ("[{linear: {weights: {default: 1}}}]", 29, "so it takes no `default`", ""),
        ("[{task_arithmetic: {weights: {base: 1}}}]", 38, "the base has no weight", "scale"),
        ("[{median: {weights: {math: 1}}}]", 19, "`median` has no parameter `weights`", "linear"),
        ("[{sparse_ties: {drop: 0.995}}]", 10, "nothing would be kept", ""),
    ],
)
def test_one_wrong_step(refused: Refused, steps: str, column: int, what: str, hint: str) -> None:
    (problem, *more) = refused(f"{HEAD}steps: {steps}")
    assert problem.where == f"recipe.yaml:3:{column}"
    assert what in problem.what
    assert hint in problem.hint
    assert not more


def test_a_required_map_must_cover_every_expert(refused: Refused) -> None:
    steps = "[{magnitude: {density: {math: 0.5}}}, task_arithmetic]"
    (problem,) = refused(f"{HEAD}steps: {steps}")
    assert problem.what == "`density` of `magnitude` has no value for code"
    assert problem.hint == "add them, or a `default`"


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ("[magnitude: {density: 1}]", ["the chain has no combine: nothing joins the experts"]),
        ("[ties, linear]", ["`linear` is a second combine, after `sign_consensus` (from `ties`)"]),
        (
            "[task_arithmetic, {magnitude: {density: 1}}]",
            ["the transform `magnitude` stands after the combine `task_arithmetic`"],
        ),
        (
            "[{scale: {lambda: 1}}, task_arithmetic]",
            ["`scale` works on the merged result but stands before the combine"],
        ),
        (
            "[dare, linear]",
            [
                "`linear` works on whole weights, so `dare`, which works on differences to the "
                "base, cannot stand in one chain with it"
            ],
        ),
        (
            "[linear, {scale: {lambda: 2}}]",
            [
                "`linear` works on whole weights, so `scale`, which works on differences to the "
                "base, cannot stand in one chain with it"
            ],
        ),
        ("[{slerp: {weights: {math: 1}}}]", ["`slerp` takes 2 experts, here are 1"]),
    ],
)
def test_the_order_of_a_chain(refused: Refused, steps: str, found: list[str]) -> None:
    assert [problem.what for problem in refused(f"{HEAD}steps: {steps}")] == found


def test_the_remedy_for_transforms_before_a_weight_space_combine(refused: Refused) -> None:
    (problem,) = refused(f"{HEAD}steps: [dare, linear]")
    assert problem.hint == "use `task_arithmetic` in place of `linear`"


def test_own_transforms_need_a_combine_of_deltas(refused: Refused) -> None:
    (problem,) = refused("base: ./b\nexperts: {math: {model: ./m, steps: [dare]}}\nsteps: [linear]")
    assert problem.where == "recipe.yaml:2:38"
    assert "`linear` works on whole weights" in problem.what


def test_inputs_are_picked_by_weights(read: Read, refused: Refused) -> None:
    three = "base: ./b\nexperts: {a: ./a, b: ./b2, c: ./c}\nsteps: "
    (problem,) = refused(f"{three}[slerp]")
    assert problem.what == "`slerp` takes 2 experts, here are 3"
    assert problem.hint == "pick its inputs: `weights: {NAME: 1, ...}`"
    recipe = read(f"{three}[{{slerp: {{weights: {{a: 1, base: 1}}}}}}]")
    assert recipe.steps[0].params["weights"] == {"a": 1.0, "base": 1.0}


@pytest.mark.parametrize(
    ("rule", "column", "what", "hint"),
    [
        ("ties", 9, "a rule is a mapping, not text", "- {match:"),
        ("{take: base}", 9, "the rule has no `match`", "add `match: '*'`"),
        ("{match: '*'}", 9, "the rule does nothing", "exactly one of"),
        ("{match: '*', take: base, drop: true}", 9, "the rule has `take` and `drop`", ""),
        ("{match: '*', tke: base, drop: true}", 22, "unknown key `tke`", "`take`?"),
        ("{match: '*', drop: yes}", 28, "`drop` can only be true", ""),
        ("{match: '*', take: mth}", 28, "there is no expert `mth` to take", "`math`?"),
        ("{match: 3, take: base}", 17, "must be a name pattern or a mapping, not a number", ""),
        ("{match: {}, take: base}", 17, "must be a name pattern or a mapping", ""),
        ("{match: {role: norms}, take: base}", 24, "unknown role `norms`", "`norm`?"),
        ("{match: {layer: 3}, take: base}", 18, "unknown key `layer` in `match`", "`layers`?"),
        ("{match: {layers: 4-1}, take: base}", 26, "the range ends before", "`0-4`"),
        ("{match: {layers: [0, -1]}, take: base}", 26, "counted from 0 upwards", ""),
        ("{match: {name: 3}, take: base}", 24, "`name` of a match must be text", ""),
        ("{match: '*', steps: [linar]}", 30, "unknown op `linar`", "`linear`?"),
        ("{match: '*', steps: [dare]}", 29, "the chain has no combine", "task_arithmetic"),
        ("{match: '*', set: 3}", 27, "`set` must map parameters to values", ""),
        ("{match: '*', set: {densty: 1}}", 28, "no op of this recipe has", "`density`?"),
        ("{match: '*', set: {density: 2}}", 37, "is 2, outside its range", ""),
        ("{match: '*', set: {dare.density: 1}}", 28, "has the op `dare`", "ops of this recipe"),
        ("{match: '*', set: {magnitud.density: 1}}", 28, "the op `magnitud`", "`magnitude`?"),
        ("{match: '*', set: {scale.lambd: 1}}", 28, "a parameter `scale.lambd`", "`scale.lambda`"),
        ("{match: '*', set: {weight: {mth: 1}}}", 37, "there is no expert `mth`", "`math`?"),
        ("{match: '*', set: {weight: x}}", 36, "`weight` of `set` must be a number", ""),
    ],
)
def test_one_wrong_rule(refused: Refused, rule: str, column: int, what: str, hint: str) -> None:
    problems = refused(f"{HEAD}steps: [ties]\nrules: [{rule}]")
    assert problems[0].where == f"recipe.yaml:4:{column}"
    assert what in problems[0].what
    assert hint in problems[0].hint
    assert all(problem.where == problems[0].where for problem in problems)


def test_set_may_name_the_ops_of_any_chain(read: Read) -> None:
    recipe = read(
        f"{HEAD}steps: [ties]\n"
        "rules: [{match: a, set: {dare.density: 0.3, magnitude.density: 0.4}},"
        " {match: b, steps: [dare, task_arithmetic]}]"
    )
    assert recipe.rules[0].set == {"dare.density": 0.3, "magnitude.density": 0.4}


@pytest.mark.parametrize(
    ("match", "name", "layer", "role", "found"),
    [
        ({"name": "*.q_proj.*"}, "model.layers.3.q_proj.weight", 3, "attention.q", True),
        ({"name": "*.Q_proj.*"}, "model.layers.3.q_proj.weight", 3, "attention.q", False),
        ({"layers": "0-2"}, "x", 2, "other", True),
        ({"layers": "0-2"}, "x", 3, "other", False),
        ({"layers": "0-"}, "x", None, "embedding", False),
        ({"role": "attention"}, "x", 1, "attention.q", True),
        ({"role": "attention.q"}, "x", 1, "attention.qk", False),
        ({"role": "mlp", "layers": "1"}, "x", 1, "mlp.up", True),
        ({"role": "mlp", "layers": "1"}, "x", 2, "mlp.up", False),
        ({}, "x", None, "other", True),
    ],
)
def test_matching(
    match: dict[str, str], name: str, layer: int | None, role: str, found: bool
) -> None:
    assert Match.model_validate(match).matches(name, layer, role) is found


def test_a_misspelt_op_elsewhere_does_not_hide_the_parameters_of_others(refused: Refused) -> None:
    (problem,) = refused(
        f"{HEAD}steps: [ties]\nrules: [{{match: a, set: {{density: 0.5}}}}, "
        "{match: b, steps: [linar]}]"
    )
    assert problem.what == "unknown op `linar`"
