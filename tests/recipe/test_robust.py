"""Whatever stands in a recipe, the answer is a recipe or a `RecipeError`."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.errors import RecipeError
from mergekit_lite.recipe import draft, load

SWAP = {"from": "math", "into": "code", "bottom": 1, "top": 1}
FULL: dict[str, Any] = {
    "schema_version": 1,
    "vars": {"d": 0.5, "e": "${d}"},
    "base": "./b",
    "experts": {
        "math": {"model": "./m", "weight": [0.1, 0.2], "steps": [{"dare": {"density": 0.5}}]},
        "code": {"lora": "./c"},
        "chat": "./chat",
    },
    "steps": [
        {"magnitude": {"density": {"math": 0.2, "default": [0.1, "${e}"]}}},
        {"sign_consensus": {"weights": {"math": 1, "code": 2}}},
        {"scale": {"lambda": 1}},
    ],
    "rules": [
        {"match": {"layers": "0-4,7", "role": "norm", "name": "*"}, "take": "chat"},
        {"match": "*", "steps": [{"layer_swap": SWAP}]},
        {"match": "x", "set": {"magnitude.density": {"math": 0.5}, "weight": 1}},
        {"match": "x", "drop": True},
    ],
    "tokenizer": {"source": "base"},
    "output": {"dtype": "bfloat16", "shard_size": "5GB"},
    "seed": 3,
    "compat": "none",
    "allow_missing": ["*"],
}
SCALARS = [None, True, 0, -1, 1.5, 1e308, float("nan"), float("inf"), 10**400]
WORDS = ["", "x", "base", "${d}", "${", "1e-3", "5GB", "@x", "ties"]
NESTED = [[], {}, [[]], [{}], {"": None}, {"x": {}}, [None], {"math": []}]
JUNK = st.sampled_from([*SCALARS, *WORDS, *NESTED])


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found = [path] if path else []
    for key, item in entries if isinstance(value, dict | list) else ():
        found += paths(item, (*path, key)) if isinstance(item, dict | list) else [(*path, key)]
    return found


CHANGES = st.lists(st.tuples(st.sampled_from(paths(FULL)), JUNK), min_size=1, max_size=3)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from(paths(FULL)), JUNK), min_size=1, max_size=3), st.booleans()
)
def test_junk_anywhere(changes: list[tuple[Any, Any]], remove: bool) -> None:
    data = deepcopy(FULL)
    for path, junk in changes:
        owner: Any = data
        try:
            for key in path[:-1]:
                owner = owner[key]
            if remove:
                del owner[path[-1]]
            else:
                owner[path[-1]] = deepcopy(junk)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took that place away
    try:
        recipe = load(data)
    except RecipeError as error:
        problems = error.problems
        told = draft(data)
        assert told is None or all(expert.reference for expert in told.experts.values())
        assert told is None or isinstance(told.base, str)
    else:
        assert load(recipe.plain()).plain() == recipe.plain()
        return
    assert problems
    assert all(problem.what and problem.where for problem in problems)


def test_undisturbed_it_is_a_recipe() -> None:
    assert load(FULL).seed == 3
