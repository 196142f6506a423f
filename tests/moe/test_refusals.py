"""What cannot be assembled is refused before a weight is read; failure modes by their numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite import api
from mergekit_lite.errors import RecipeError

Dense = Callable[..., Path]


def refused(recipe: dict[str, Any]) -> str:
    """Return the problems of a recipe, which has some."""
    with pytest.raises(RecipeError) as caught:
        api.plan(recipe)
    return "\n".join(f"{p.where}: {p.what} [{p.hint}]" for p in caught.value.problems)


def routed(dense: Dense, family: str = "llama", **moe: Any) -> dict[str, Any]:
    """Return a recipe of two experts of a family."""
    return {
        "base": str(dense(family)),
        "experts": {"math": str(dense(family, 1)), "code": str(dense(family, 2))},
        "moe": {"gate": "random", **moe},
    }


def test_all_problems_of_the_text_come_at_once(dense: Dense) -> None:
    text = refused(
        routed(
            dense,
            target="mixtrall",
            experts=["mth", {"prompts": ["x"]}],
            shared="codee",
            gat="random",
        )
    )
    assert "did you mean `mixtral`" in text
    assert "did you mean `math`" in text
    assert "does not say whose layers it has" in text
    assert "did you mean `code`" in text
    assert "unknown key `gat` in `moe`" in text


def test_a_gate_must_be_said_and_known(dense: Dense) -> None:
    text = refused(routed(dense, gate=None))
    assert "nothing says how the routers are made" in text
    assert "did you mean `random`" in refused(routed(dense, gate="randm"))
    text = refused(routed(dense, gate={"method": "random", "std": -1, "stdd": 2}))
    assert "no parameter `stdd`" in text
    assert "0 < x" in text


def test_more_experts_a_token_than_there_are(dense: Dense) -> None:
    assert "tokens cannot pass 3 of 2 experts" in refused(routed(dense, experts_per_token=3))  # F20


def test_an_unknown_gate_hides_no_other_problem(dense: Dense) -> None:
    text = refused(routed(dense, gate="randm", experts_per_token=3))
    assert "did you mean `random`" in text
    assert "tokens cannot pass 3 of 2 experts" in text


def test_gates_of_zeros_need_all_experts_or_training(dense: Dense) -> None:
    text = refused(routed(dense, gate="zeros", experts_per_token=1))  # F9
    assert "leave it to chance which 1 of 2" in text
    api.plan(routed(dense, gate="zeros", experts_per_token=1, for_training=True))


def test_copies_are_for_training(dense: Dense) -> None:
    recipe = {"base": str(dense("llama")), "moe": {"experts": ["base"] * 3, "gate": "random"}}
    assert "all 3 experts are `base`" in refused(recipe)
    again = str(dense("llama"))
    recipe = {"base": again, "experts": {"a": again, "b": again}, "moe": {"gate": "random"}}
    assert "all 2 experts are `a`" in refused(recipe)  # one model under two names


def test_weights_that_do_not_add_up_are_refused(dense: Dense) -> None:
    recipe = routed(dense, "deepseek_v2", experts_per_token=1)  # F1
    assert "do not add up to 1" in refused(recipe)


def test_a_family_that_computes_something_else(dense: Dense) -> None:
    text = refused(routed(dense, "qwen2", target="mixtral"))
    assert "takes llama, mistral, phi3 models, not `qwen2`" in text
    assert "`target: glm4_moe` can" in text
    assert "nothing to assemble it from" in refused(routed(dense, "olmo2", target="olmoe"))


def test_targets_that_no_dense_model_fits(dense: Dense) -> None:
    assert "`moe.target: phimoe` is no family" in refused(routed(dense, target="phimoe"))  # F22


def test_a_shared_expert_where_there_is_none(dense: Dense) -> None:
    text = refused(routed(dense, target="mixtral", shared="base"))
    assert "has no shared expert" in text
    text = refused(routed(dense, "qwen2", target="qwen2_moe", shared="none"))
    assert "cannot be without a shared expert" in text


def test_layers_that_cannot_be_dense(dense: Dense) -> None:
    assert "every layer of a `mixtral` model is routed" in refused(
        routed(dense, target="mixtral", layers="1-")
    )
    assert "only the first layers" in refused(routed(dense, target="glm4_moe", layers="0-1"))
    assert "3 layers (0-2)" in refused(routed(dense, target="glm4_moe", layers="2-7"))


def test_experts_of_another_residual_stream(dense: Dense, tmp_path: Path) -> None:
    from tests.moe.dense import make

    other = make("llama", tmp_path / "other", seed=3, rope_parameters={
        "rope_type": "default", "rope_theta": 500000.0})  # fmt: skip
    recipe = routed(dense)
    recipe["experts"]["code"] = str(other)
    text = refused(recipe)  # F11
    assert "rope_theta 500000.0 (base 10000.0)" in text
    recipe["moe"]["allow"] = ["rope_theta"]
    api.plan(recipe)


def test_a_base_that_is_routed_already(dense: Dense, tmp_path: Path) -> None:
    out = tmp_path / "routed"
    api.run(routed(dense), out)
    recipe = {"base": str(out), "moe": {"experts": ["base"] * 2, "for_training": True}}
    assert "the base is a routed model already" in refused(recipe)


def test_it_does_not_go_with_slices_or_adapters_as_output(dense: Dense) -> None:
    recipe = routed(dense)
    recipe["slices"] = [{"take": "base", "layers": "0-2"}]
    assert "`moe` and `slices` do not go together" in refused(recipe)
