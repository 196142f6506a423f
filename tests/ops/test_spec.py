"""What is derived from an op's signature, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mergekit_lite.ops import get, registry

NAMES = {
    "linear", "task_arithmetic", "magnitude", "dare", "breadcrumbs", "sign_consensus", "scale",
    "slerp", "passthrough", "layer_swap", "take", "drop", "ties", "dare_linear", "dare_ties",
    "breadcrumbs_ties",
}  # fmt: skip


def test_the_registry_holds_the_ops_by_name() -> None:
    assert registry().keys() >= NAMES
    assert get("ties").kind == "preset"
    assert get("slerp").space == "weight"
    with pytest.raises(KeyError, match="did you mean `linear`"):
        get("linaer")


def test_specs_do_not_import_torch() -> None:
    script = (
        "import sys; from mergekit_lite.ops import registry; registry();"
        "from mergekit_lite.ops import _statistics, _chain;"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_keywords_are_spelt_for_python() -> None:
    assert get("scale").arguments({"lambda": 2.0, "weights": [1]}) == {"lambda_": 2.0}
    assert get("layer_swap").arguments({"from": "a", "into": "b"}) == {"from_": "a", "into": "b"}


def test_parameters_know_their_kind() -> None:
    dare = get("dare").parameters
    assert dare["density"].numeric
    assert dare["density"].per_expert
    assert dare["rescale"].choices == ("inv_density", "l1", "none")
    assert get("take").parameters["source"].expert_name
    assert get("take").parameters["source"].required
    assert get("passthrough").parameters["source"].expert_name
    assert get("dare").defaults("mergekit") == {"density": 1.0, "rescale": "l1"}


@pytest.mark.parametrize(
    ("op", "params", "words"),
    [
        ("dare", {"density": True}, "type float"),
        ("dare", {"density": float("nan")}, "type float"),
        ("dare", {"density": 1.5}, "0 < x <= 1"),
        ("breadcrumbs", {"gamma": 1.0}, "0 <= x < 1"),
        ("layer_swap", {"from": "a", "into": "b", "bottom": 1.5, "top": 1}, "type int"),
        ("layer_swap", {"from": "a", "into": "b"}, "needs `bottom`"),
        ("linear", {"normalize": "yes"}, "type bool"),
        ("sign_consensus", {"agg": "median"}, "mean, sum, max"),
        ("slerp", {"tt": 0.5}, "no parameter `tt`"),
    ],
)
def test_wrong_values_are_named(op: str, params: dict[str, object], words: str) -> None:
    assert words in " ".join(get(op).problems(params))


def test_right_values_are_no_problem() -> None:
    assert get("magnitude").problems({"density": 1, "density_1d": None}) == []
    assert get("linear").problems({"weights": [0.5, 0.5]}) == []


def test_what_a_combine_reads() -> None:
    experts = ("a", "b", "c")
    assert get("linear").reads({}, experts) == experts
    weights = {"c": 1, "base": 1, "a": 1}
    assert get("linear").reads({"weights": weights}, experts) == ("base", "a", "c")
    assert get("take").reads({"source": "b"}, experts) == ("b",)
    assert get("passthrough").reads({"source": None}, experts) == experts
    assert get("slerp").reads({}, ("a",)) == ("base", "a")
    assert get("slerp").reads({}, ("a", "b")) == ("a", "b")


def test_reach_may_shrink_with_the_parameters() -> None:
    assert get("breadcrumbs").reach == "row"
    assert get("breadcrumbs").reach_for({"unit": "row"}) == "row"
    assert get("breadcrumbs").reach_for({"unit": "tensor"}) == "element"
    assert get("dare").reach_for({}) == "element"
