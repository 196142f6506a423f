"""Models that no table knows: any architecture, any names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.plan.build import build
from tests.plan.hollow import Tensors, recipe, write

part = st.text("abcxyz019_", min_size=1, max_size=5)
names = st.lists(
    st.lists(part, min_size=1, max_size=5).map(".".join), min_size=1, max_size=12, unique=True
)
STEPS = ("task_arithmetic", "ties", "linear", "slerp: {t: 0.5}", "dare_ties: {density: 0.5}")


@given(names, st.sampled_from(STEPS))
@settings(max_examples=25)
def test_a_made_up_model_type_with_any_names(
    tmp_path_factory: object, found: list[str], step: str
) -> None:
    root = Path(tmp_path_factory.mktemp("foo"))  # type: ignore[attr-defined]
    tensors: Tensors = {name: ("BF16", (4, n % 3 + 1)) for n, name in enumerate(found)}
    for name in ("base", "one"):
        write(root / name, tensors, {"model_type": "foo", "architectures": ["FooModel"]})
    made = build(recipe(root, f"base: base\nexperts: {{one: one}}\nsteps: [{step}]\n"))
    assert {job.name for job in made.jobs} == set(tensors)
    assert {job.kind for job in made.jobs} <= {"merge", "copy"}


def test_planning_imports_no_transformers(root: Path) -> None:
    recipe(root, "base: base\nexperts: {math: math}\nsteps: [linear]\n")
    code = (
        "import sys; from mergekit_lite import api; api.plan('recipe.yaml');"
        "print('transformers' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]
