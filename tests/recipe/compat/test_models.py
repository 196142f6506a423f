"""`models:` recipes, as they stand on model cards."""

from __future__ import annotations

import os
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.recipe import Recipe, load

Ours = Callable[..., dict[str, Any]]
Read = Callable[..., Recipe]


def test_ties_of_a_model_card(ours: Ours) -> None:
    assert ours(
        """
        models:
          - model: psmathur/orca_mini_v3_13b
            parameters:
              density: [1, 0.7, 0.1] # density gradient
              weight: 1.0
          - model: garage-bAInd/Platypus2-13B
            parameters:
              density: 0.5
              weight: [0, 0.3, 0.7, 1] # weight gradient
          - model: WizardLM/WizardMath-13B-V1.0
            parameters:
              density: 0.33
              weight:
                - filter: mlp
                  value: 0.5
                - value: 0
        merge_method: ties
        base_model: TheBloke/Llama-2-13B-fp16
        parameters:
          normalize: true
          int8_mask: true
        dtype: float16
        """
    ) == {
        "base": "TheBloke/Llama-2-13B-fp16",
        "experts": {
            "orca_mini_v3_13b": {"model": "psmathur/orca_mini_v3_13b", "weight": 1.0},
            "Platypus2-13B": {
                "model": "garage-bAInd/Platypus2-13B",
                "weight": [0.0, 0.3, 0.7, 1.0],
            },
            "WizardMath-13B-V1.0": {"model": "WizardLM/WizardMath-13B-V1.0", "weight": 0.0},
        },
        "steps": [
            {
                "ties": {
                    "density": {
                        "orca_mini_v3_13b": [1.0, 0.7, 0.1],
                        "Platypus2-13B": 0.5,
                        "WizardMath-13B-V1.0": 0.33,
                    },
                    "agg": "mean",
                }
            }
        ],
        "rules": [{"match": {"name": "*mlp*"}, "set": {"weight": {"WizardMath-13B-V1.0": 0.5}}}],
        "output": {"dtype": "float16"},
    }


def test_dare_ties_with_the_base_listed_first(ours: Ours, read: Read) -> None:
    text = """
        models:
          - model: mistralai/Mistral-7B-v0.1
            # no parameters necessary for base model
          - model: samir-fama/SamirGPT-v1
            parameters: {density: 0.53, weight: 0.4}
          - model: abacusai/Slerp-CM-mist-dpo
            parameters: {density: 0.53, weight: 0.3}
        merge_method: dare_ties
        base_model: mistralai/Mistral-7B-v0.1
        parameters: {int8_mask: true}
        dtype: bfloat16
        """
    assert ours(text) == {
        "base": "mistralai/Mistral-7B-v0.1",
        "experts": {
            "SamirGPT-v1": {"model": "samir-fama/SamirGPT-v1", "weight": 0.4},
            "Slerp-CM-mist-dpo": {"model": "abacusai/Slerp-CM-mist-dpo", "weight": 0.3},
        },
        "steps": [{"dare_ties": {"density": 0.53}}],
        "output": {"dtype": "bfloat16"},
    }
    assert read(text).notes == ()


def test_linear_gives_the_first_model_a_weight_too(ours: Ours) -> None:
    """Without `base_model` the first model lends its config, and is one of those averaged."""
    assert ours(
        """
        models:
          - {model: ./a, parameters: {weight: 1.0}}
          - {model: ./b, parameters: {weight: 0.3}}
          - {model: ./c, parameters: {weight: [0.5, 1e-1]}}
        merge_method: linear
        parameters: {normalize: false}
        """
    ) == {
        "base": "./a",
        "experts": {"b": {"model": "./b"}, "c": {"model": "./c"}},
        "steps": [
            {"linear": {"normalize": False, "weights": {"base": 1.0, "b": 0.3, "c": [0.5, 0.1]}}}
        ],
    }


def test_breadcrumbs_are_two_ops_here(ours: Ours) -> None:
    assert ours(
        """
        models:
          - {model: ./a, parameters: {weight: 0.5, density: 0.9, gamma: 0.02}}
          - {model: ./b, parameters: {weight: 0.25}}
        base_model: ./base
        merge_method: breadcrumbs
        parameters:
          density: 0.8
          lambda: 1.5
          normalize: [{filter: mlp, value: true}, {value: no}]
        """
    ) == {
        "base": "./base",
        "experts": {
            "a": {"model": "./a", "weight": 0.5},
            "b": {"model": "./b", "weight": 0.25},
        },
        "steps": [
            {"breadcrumbs": {"density": {"a": 0.9, "b": 0.8}, "gamma": {"a": 0.02}}},
            {"task_arithmetic": {"normalize": False, "lambda": 1.5}},
        ],
        "rules": [{"match": {"name": "*mlp*"}, "set": {"task_arithmetic.normalize": True}}],
    }


def test_passthrough_of_an_adapter(ours: Ours) -> None:
    assert ours(
        """
        models:
          - model: ./base+./adapter
        merge_method: passthrough
        dtype: torch.bfloat16
        """
    ) == {
        "base": "./base",
        "experts": {"adapter": {"lora": "./adapter"}},
        "steps": [{"passthrough": {"source": "adapter"}}],
        "output": {"dtype": "bfloat16"},
    }


def test_adapters_of_the_base_need_no_copy_of_it(ours: Ours) -> None:
    found = ours(
        """
        models:
          - {model: ./base+org/lora-a@v1, parameters: {weight: 0.5}}
          - {model: ./base+./lora-b, parameters: {weight: 0.5}}
        merge_method: task_arithmetic
        base_model: ./base
        """
    )
    assert found["experts"] == {
        "lora-a": {"lora": "org/lora-a@v1", "weight": 0.5},
        "lora-b": {"lora": "./lora-b", "weight": 0.5},
    }


@pytest.mark.parametrize("spelt", ["base", "./base", "base/", "../{here}/base", "{tmp}/base"])
def test_one_base_spelt_two_ways(ours: Ours, tmp_path: Path, spelt: str) -> None:
    (tmp_path / "base").mkdir()
    spelt = spelt.format(here=tmp_path.name, tmp=tmp_path)
    found = ours(
        f"""
        merge_method: slerp
        base_model: ./base
        models: [{{model: {spelt}}}, {{model: ./other}}]
        parameters: {{t: 0.5}}
        """
    )
    assert found["experts"] == {"other": {"model": "./other"}}
    assert found["steps"] == [{"slerp": {"t": 0.5}}]


def test_the_first_filter_that_fits_holds(ours: Ours) -> None:
    """mergekit takes the first of a list, rules the last; a model's own list comes before all."""
    found = ours(
        """
        merge_method: ties
        base_model: ./base
        models:
          - model: ./a
            parameters:
              weight:
                - {filter: q_proj, value: 0.1}
                - {filter: self_attn, value: 0.2}
          - model: ./b
        parameters:
          weight:
            - {filter: "[x]*", value: 0.3}
            - {filter: self_attn, value: 0.4}
            - {filter: "*", value: 0.5}
            - {filter: never, value: 9}
        """
    )
    assert found["experts"]["a"]["weight"] == found["experts"]["b"]["weight"] == 0.5

    def weight(expert: str, tensor: str) -> float:
        value = found["experts"][expert]["weight"]
        for rule in found["rules"]:
            if fnmatchcase(tensor, rule["match"]["name"]):
                value = rule["set"]["weight"].get(expert, value)
        return value

    names = ("self_attn.q_proj", "self_attn.k_proj", "mlp.[x]*", "self_attn.[x]*", "mlp.never")
    assert [weight("a", name) for name in names] == [0.1, 0.2, 0.3, 0.2, 0.5]
    assert [weight("b", name) for name in names] == [0.4, 0.4, 0.3, 0.3, 0.5]


def test_each_name_is_one_of_its_own(ours: Ours) -> None:
    found = ours(
        """
        merge_method: ties
        base_model: ./b
        models: [{model: one/base}, {model: two/m}, {model: three/m}, {model: "four/ü m!"}]
        parameters: {weight: 1}
        """
    )
    assert {n: e["model"] for n, e in found["experts"].items()} == {
        "base-2": "one/base",
        "m": "two/m",
        "m-2": "three/m",
        "m-3": "four/ü m!",
    }


def test_the_long_form_of_a_reference(ours: Ours, read: Read) -> None:
    text = """
        merge_method: task_arithmetic
        base_model: {model: {path: org/base, revision: v2}, override_architecture: Foo}
        models:
          - model: {model: {path: org/m, revision: null}, lora: null}
            parameters: {weight: "0.5"}
        """
    found = ours(text)
    assert found["base"] == "org/base@v2"
    assert found["experts"] == {"m": {"model": "org/m", "weight": 0.5}}


def test_models_are_looked_for_where_mergekit_looks(read: Read, tmp_path: Path) -> None:
    """mergekit spells paths from the working folder, we from the recipe's."""
    for name in ("m/base", "m/a", "cards/m/a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "cards" / "merge.yml").write_text(
        "merge_method: ties\nbase_model: m/base\nmodels: [{model: ./m/a}, {model: gone}]\n"
        "parameters: {weight: 1}\n"
    )

    os.chdir(tmp_path)
    recipe = load(Path("cards/merge.yml"))
    assert recipe.base == "../m/base"
    assert [expert.model for expert in recipe.experts.values()] == ["../m/a", "gone"]


def test_changes_of_the_command_line_speak_either_language(ours: Ours, read: Read) -> None:
    text = """
        merge_method: ties
        base_model: ./base
        models: [{model: ./a, parameters: {weight: 1}}]
        """
    changed = read(text, "models.0.parameters.weight=0.25", "parameters.density=0.3", "seed=7")
    assert changed.experts["a"].weight == 0.25
    assert changed.steps[0].params == {"density": 0.3}
    assert changed.seed == 7
    assert read(text, "output.shard_size=5MB", "dtype=float32").output.shard_size == 5_000_000


def test_a_mapping_is_read_too() -> None:
    recipe = load(
        {
            "merge_method": "slerp",
            "base_model": "./a",
            "models": [{"model": "./b"}],
            "parameters": {"t": [0, 0.5, 1]},
            "seed": 3,
        }
    )
    assert recipe.steps[0].params == {"t": [0.0, 0.5, 1.0]}
    assert (recipe.seed, recipe.compat) == (3, "mergekit")
