"""`slices:` and `modules:` of mergekit recipes."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent
from typing import Any

import pytest

from mergekit_lite.errors import Problem
from mergekit_lite.recipe import Recipe

Ours = Callable[..., dict[str, Any]]
Refused = Callable[..., list[Problem]]


def test_slerp_as_most_model_cards_have_it(ours: Ours) -> None:
    assert ours(
        """
        slices:
          - sources:
              - model: OpenPipe/mistral-ft-optimized-1218
                layer_range: [0, 32]
              - model: mlabonne/NeuralHermes-2.5-Mistral-7B
                layer_range: [0, 32]
        merge_method: slerp
        base_model: OpenPipe/mistral-ft-optimized-1218
        parameters:
          t:
            - filter: self_attn
              value: [0, 0.5, 0.3, 0.7, 1]
            - filter: mlp
              value: [1, 0.5, 0.7, 0.3, 0]
            - value: 0.5
        dtype: bfloat16
        """
    ) == {
        "base": "OpenPipe/mistral-ft-optimized-1218",
        "experts": {
            "NeuralHermes-2.5-Mistral-7B": {"model": "mlabonne/NeuralHermes-2.5-Mistral-7B"}
        },
        "slices": [{"layers": {"base": "0-31", "NeuralHermes-2.5-Mistral-7B": "0-31"}}],
        "steps": [{"slerp": {"t": 0.5}}],
        "rules": [
            {"match": {"name": "*mlp*"}, "set": {"t": [1.0, 0.5, 0.7, 0.3, 0.0]}},
            {"match": {"name": "*self_attn*"}, "set": {"t": [0.0, 0.5, 0.3, 0.7, 1.0]}},
        ],
        "output": {"dtype": "bfloat16"},
    }


def test_a_frankenmerge(ours: Ours) -> None:
    """Embeddings are those of the first slice, what follows the layers is that of the last."""
    assert ours(
        """
        merge_method: passthrough
        slices:
          - sources: [{model: ./a, layer_range: [0, 24]}]
          - sources: [{model: ./b, layer_range: [8, 9]}]
          - sources: [{model: ./a, layer_range: [20, 32]}]
          - sources: [{model: ./b, layer_range: [20, 32]}]
        dtype: float16
        """
    ) == {
        "base": "./a",
        "experts": {"b": {"model": "./b"}},
        "slices": [
            {"take": "base", "layers": {"base": "0-23"}},
            {"take": "b", "layers": {"b": "8"}},
            {"take": "base", "layers": {"base": "20-31"}},
            {"take": "b", "layers": {"b": "20-31"}},
        ],
        "steps": [{"passthrough": {"source": "b"}}],
        "rules": [{"match": {"role": "embedding"}, "steps": [{"passthrough": {"source": "base"}}]}],
        "output": {"dtype": "float16"},
    }


def test_each_slice_has_values_of_its_own(ours: Ours) -> None:
    """A gradient runs over its slice, so each of its layers has a rule."""
    found = ours(
        """
        merge_method: ties
        base_model: ./base
        parameters: {density: 0.6}
        slices:
          - sources:
              - {model: ./base, layer_range: [0, 2]}
              - {model: ./a, layer_range: [1, 3], parameters: {weight: 0.5}}
            parameters: {lambda: 0.7}
          - sources:
              - {model: ./base, layer_range: [2, 5]}
              - model: ./b
                layer_range: [2, 5]
                parameters: {weight: [{filter: mlp, value: 0.3}, {value: [0, 1]}]}
        """
    )
    assert found["experts"] == {"a": {"model": "./a"}, "b": {"model": "./b"}}
    assert found["slices"] == [
        {
            "layers": {"base": "0-1", "a": "1-2"},
            "steps": [{"ties": {"density": 0.6, "lambda": 0.7, "weights": {"a": 0.5}}}],
        },
        {
            "layers": {"base": "2-4", "b": "2-4"},
            "steps": [{"ties": {"density": 0.6, "weights": {"b": 0.0}}}],
        },
    ]
    assert found["steps"] == [{"ties": {"density": 0.6, "weights": {"b": 0.0}}}]
    outside, bottom, *layers = found["rules"]
    assert outside == {
        "match": {"name": "*mlp*", "layers": "outside"},
        "set": {"weight": {"b": 0.3}},
    }
    assert bottom == {
        "match": {"role": "embedding"},
        "steps": [{"ties": {"density": 0.6, "lambda": 0.7, "weights": {"a": 0.5}}}],
    }
    assert layers == [
        rule
        for layer, weight in (("2", 0.0), ("3", 0.5), ("4", 1.0))
        for rule in (
            {"match": {"layers": layer}, "set": {"weight": {"b": weight}}},
            {"match": {"name": "*mlp*", "layers": layer}, "set": {"weight": {"b": 0.3}}},
        )
    ]


def test_scaled_layers_of_a_self_merge(ours: Ours) -> None:
    found = ours(
        """
        merge_method: passthrough
        slices:
          - sources: [{model: ./a, layer_range: [0, 8]}]
          - sources:
              - model: ./a
                layer_range: [4, 8]
                parameters: {scale: [{filter: o_proj, value: 0.0}, {value: 1.0}]}
        """
    )
    assert found["slices"][1]["steps"] == [{"passthrough": {"source": "base", "scale": 1.0}}]
    assert found["rules"] == [
        {"match": {"name": "*o_proj*", "layers": "outside"}, "set": {"scale": 0.0}},
        {"match": {"role": "embedding"}, "steps": [{"passthrough": {"source": "base"}}]},
        {"match": {"name": "*o_proj*", "layers": "8-11"}, "set": {"scale": 0.0}},
    ]


def test_one_module_is_the_whole_model(ours: Ours) -> None:
    found = ours(
        """
        merge_method: slerp
        base_model: ./a
        modules:
          default:
            slices:
              - sources: [{model: ./a, layer_range: [0, 4]}, {model: ./b, layer_range: [0, 4]}]
            parameters: {t: 0.3}
        parameters: {t: 0.9}
        """
    )
    assert found["slices"] == [{"layers": {"base": "0-3", "b": "0-3"}}]
    assert found["steps"] == [{"slerp": {"t": 0.3}}]


def test_modules_of_a_model_that_sees(ours: Ours) -> None:
    found = ours(
        """
        merge_method: task_arithmetic
        base_model: ./base
        modules:
          multi_modal_projector: {models: [{model: ./a}]}
          vision_tower:
            models: [{model: ./a}]
            parameters: {weight: [{filter: mlp, value: 0.1}, {value: 0}]}
          text_decoder:
            models: [{model: ./a}, {model: ./b, parameters: {weight: 0.3}}]
        parameters: {weight: 0.5}
        """
    )

    def added(**weights: float) -> list[Any]:
        return [{"task_arithmetic": {"weights": weights}}]

    assert found["steps"] == added(a=0.5, b=0.3)
    assert found["rules"] == [
        {"match": {"name": "*vis[iu]*"}, "steps": added(a=0.0)},
        {"match": {"name": "*vis[iu]*mlp*"}, "set": {"weight": {"a": 0.1}}},
        {"match": {"name": "*projector*"}, "steps": added(a=0.5)},
        {"match": {"name": "*merger*"}, "steps": added(a=0.5)},
    ]


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("{model: ./a}", "this source has no `layer_range`"),
        ("{model: ./a, layer_range: 3}", "`layer_range` must be two whole numbers, not `3`"),
        ("{model: ./a, layer_range: [0, x]}", "two whole numbers"),
        ("{model: ./a, layer_range: [4, 4]}", "`layer_range: [4, 4]` holds no layers"),
        ("{model: ./a, layer_range: [-1, 4]}", "holds no layers"),
        ("{model: ./a, layer_rage: [0, 4]}", "unknown key `layer_rage` in `sources`"),
    ],
)
def test_layers_that_cannot_be_read(refused: Refused, source: str, what: str) -> None:
    text = f"merge_method: passthrough\nslices: [{{sources: [{source}]}}]\n"
    found = [problem for problem in refused(text) if what in problem.what]
    assert found
    assert found[0].where.startswith("merge.yml:2:")


def test_sources_of_differing_depth(refused: Refused) -> None:
    (problem,) = refused(
        """
        merge_method: slerp
        base_model: ./a
        parameters: {t: 0.5}
        slices:
          - sources: [{model: ./a, layer_range: [0, 4]}, {model: ./b, layer_range: [0, 5]}]
        """
    )
    assert problem.what == (
        "the sources of a slice have differing numbers of layers: `./a` 0-3, `./b` 0-4"
    )
    assert problem.where == "merge.yml:5:14"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("slices: [3]", "`slices` is not what it should be"),
        ("slices: [{}]", "`sources` is"),
        ("slices: [{source: []}]", "unknown key `source` in `slices`"),
        ("modules: []", "`modules` is empty"),
        ("modules: {a: {}}", "the module `a` has neither `models` nor `slices`"),
        ("modules: {a: {models: [], slices: []}}", "has both `models` and `slices`"),
        ("modules: {a: {modles: []}}", "unknown key `modles` in `modules.a`"),
    ],
)
def test_shapes_that_are_none(refused: Refused, text: str, what: str) -> None:
    found = refused(f"merge_method: ties\nbase_model: ./b\n{text}\nparameters: {{weight: 1}}\n")
    assert any(what in problem.what for problem in found)


def test_a_base_of_a_slice_that_is_not_among_its_sources(refused: Refused) -> None:
    found = refused(
        """
        merge_method: ties
        base_model: ./a
        parameters: {weight: 1}
        slices:
          - base_model: ./c
            sources: [{model: ./b, layer_range: [0, 4]}]
        """
    )
    assert [problem.what for problem in found] == [
        "`base_model` is not among the sources of this slice; `ties` needs it",
    ]
    assert "./c" in found[0].hint


def test_a_slice_with_a_base_of_its_own_is_a_stage(ours: Ours) -> None:
    found = ours(
        """
        merge_method: slerp
        base_model: ./a
        parameters: {t: 0.2}
        slices:
          - sources: [{model: ./a, layer_range: [0, 2]}, {model: ./b, layer_range: [0, 2]}]
          - base_model: ./b
            sources: [{model: ./b, layer_range: [2, 5]}, {model: ./c, layer_range: [1, 4]}]
            parameters: {t: [{filter: mlp, value: [0, 1]}, {value: 0.5}]}
        """
    )
    assert found["base"] == "./a"
    assert found["experts"] == {"b": {"model": "./b"}, "slice-2": {"model": "@slice-2"}}
    between = [{"slerp": {"t": 0.2, "weights": {"b": 1.0}}}]
    assert found["slices"] == [
        {"layers": {"base": "0-1", "b": "0-1"}, "steps": between},
        {"take": "slice-2", "layers": {"slice-2": "0-2"}},
    ]
    assert found["steps"] == [{"passthrough": {"source": "slice-2"}}]
    assert found["rules"] == [
        {"match": {"role": "embedding"}, "steps": between},
    ]
    stage = found["stages"]["slice-2"]
    assert stage["base"] == "./b"
    assert stage["experts"] == {"c": {"model": "./c"}}
    assert stage["slices"] == [{"layers": {"base": "2-4", "c": "1-3"}}]
    assert stage["steps"] == [{"slerp": {"t": 0.5}}]
    assert stage["rules"] == [{"match": {"name": "*mlp*"}, "set": {"t": [0.0, 1.0]}}]


def test_the_one_base_that_all_slices_name_is_the_recipes(ours: Ours) -> None:
    sources = "[{model: ./b, layer_range: [0, 2]}, {model: ./c, layer_range: [1, 3]}]"
    found = ours(
        f"""
        merge_method: slerp
        parameters: {{t: 0.2}}
        slices: [{{base_model: ./b, sources: {sources}}}, {{base_model: ./b, sources: {sources}}}]
        """
    )
    assert (found["base"], list(found["experts"])) == ("./b", ["c"])
    assert "stages" not in found


def test_a_base_that_a_method_does_not_use(read: Callable[..., Recipe]) -> None:
    recipe = read(
        """
        merge_method: passthrough
        slices:
          - {base_model: ./b, sources: [{model: ./a, layer_range: [0, 2]}]}
        """
    )
    assert recipe.base == "./a"
    assert not recipe.stages


def test_slices_of_the_main_module_beside_other_modules(ours: Ours) -> None:
    """Rules for layers of the text must not reach layers of the same number that see."""
    found = ours(
        """
        merge_method: task_arithmetic
        base_model: ./base
        modules:
          vision_tower:
            models: [{model: ./c, parameters: {weight: [{filter: mlp, value: 0.1}, {value: 0}]}}]
          text_decoder:
            slices:
              - sources: [{model: ./base, layer_range: [0, 2]}, {model: ./a, layer_range: [0, 2]}]
              - sources:
                  - {model: ./base, layer_range: [1, 3]}
                  - {model: ./b, layer_range: [1, 3], parameters: {weight: [0, 1]}}
        parameters: {weight: 0.5}
        """
    )
    assert found["experts"] == {
        "a": {"model": "./a"},
        "b": {"model": "./b"},
        "vision_tower": {"model": "@vision_tower"},
    }
    assert [part["layers"] for part in found["slices"]] == [
        {"base": "0-1", "a": "0-1"},
        {"base": "1-2", "b": "1-2"},
    ]
    assert found["rules"][-1] == {"match": {"name": "*vis[iu]*"}, "take": "vision_tower"}
    stage = found["stages"]["vision_tower"]
    assert stage["experts"] == {"c": {"model": "./c", "weight": 0.0}}
    assert stage["steps"] == [{"task_arithmetic": {}}]
    assert "slices" not in stage
    assert stage["rules"] == [{"match": {"name": "*mlp*"}, "set": {"weight": {"c": 0.1}}}]


def test_only_the_main_module_is_stacked(refused: Refused) -> None:
    (problem,) = refused(
        """
        merge_method: task_arithmetic
        base_model: ./base
        parameters: {weight: 0.5}
        modules:
          text_decoder: {models: [{model: ./a}]}
          vision_tower:
            slices: [{sources: [{model: ./base, layer_range: [0, 2]},
                                {model: ./a, layer_range: [0, 2]}]}]
        """
    )
    assert "`slices` in the module `vision_tower` beside other modules" in problem.what
    assert "`text_decoder` or `default`" in problem.what
    assert problem.where == "merge.yml:7:5"


def test_stages_of_several_recipes_of_one_file(read: Callable[..., Recipe]) -> None:
    part = """
        merge_method: slerp
        base_model: ./a
        parameters: {t: 0.2}
        slices:
          - base_model: ./b
            sources: [{model: ./b, layer_range: [2, 5]}, {model: %s, layer_range: [1, 4]}]
        """
    recipe = read(f"name: slice-1\n{dedent(part % './c')}---\n{dedent(part % 'slice-1')}")
    assert set(recipe.stages) == {"slice-1", "slice-1-slice-1", "slice-1-2"}
