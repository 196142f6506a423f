"""Faults that are planted into models whose names and layouts are not Llama's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mergekit_lite.errors import Problem
from mergekit_lite.quality.configs import config_faults
from mergekit_lite.quality.faults import Kin, faults_of
from mergekit_lite.sources import resolve
from tests.calibrate.conftest import save_model
from tests.checkpoints import perturbed, read_weights, write_weights

Weights = dict[str, torch.Tensor]
NAMES = {
    "gpt2": ("transformer.h.1", "attn.c_attn.weight", "transformer.wte.weight"),
    "bert": (
        "bert.encoder.layer.1",
        "attention.self.query.weight",
        "bert.embeddings.word_embeddings.weight",
    ),
}


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, two experts and a merge of one of them, of each family."""
    found = {}
    for family in NAMES:
        home = found[family] = tmp_path_factory.mktemp(family)
        save_model(home / "base", family, labels=3 if family == "bert" else 0)
        for seed, name in enumerate(("one", "two"), 1):
            perturbed(home / "base", home / name, seed=seed, scale=0.02)
        shutil.copytree(home / "base", home / "merge")
        base, one = read_weights(home / "base"), read_weights(home / "one")
        write_weights(home / "merge", {n: w + 0.5 * (one[n] - w) for n, w in base.items()})
    return found


def nan(weights: Weights, layer: str, query: str, words: str) -> None:
    weights[f"{layer}.{query}"][2, 1] = float("nan")


def no_layer(weights: Weights, layer: str, query: str, words: str) -> None:
    for name in weights:
        if name.startswith(f"{layer}.") and weights[name].dim() > 1:
            weights[name].zero_()


def exchanged(weights: Weights, layer: str, query: str, words: str) -> None:
    name = f"{layer}.{query}"
    if "c_attn" in name:
        # GPT-2 has queries, keys and values side by side in one matrix.
        q, k, v = weights[name].chunk(3, 1)
        weights[name] = torch.cat([k, q, v], 1)
    else:
        key = name.replace("query", "key")
        weights[name], weights[key] = weights[key], weights[name]


def shifted(weights: Weights, layer: str, query: str, words: str) -> None:
    weights[words] = weights[words].roll(1, 0)


def found(home: Path, folder: Path, *experts: str) -> list[Problem]:
    models = {name: resolve(str(home / name), relative_to=Path()) for name in ("base", *experts)}
    kin = Kin(models["base"], {name: models[name] for name in experts})
    return faults_of(resolve(str(folder), relative_to=Path()), kin)


@pytest.mark.parametrize("family", NAMES)
def test_a_merge_without_a_fault_has_none_and_a_lost_expert_is_found(
    homes: dict[str, Path], family: str
) -> None:
    home = homes[family]
    assert found(home, home / "merge", "one") == []
    (problem,) = found(home, home / "merge", "one", "two")
    assert problem.where == "expert two"


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (nan, "{layer}.{query}", "1 entry is NaN or infinite"),
        (no_layer, "{layer}", "all matrices of the layer are zeros"),
        (exchanged, "{layer}.{query}", "it is not the base's"),
        (shifted, "{words}", "its rows are the base's, moved by +1"),
    ],
)
@pytest.mark.parametrize("family", NAMES)
def test_a_planted_fault_is_found(
    homes: dict[str, Path],
    tmp_path: Path,
    family: str,
    change: Callable[[Weights, str, str, str], None],
    where: str,
    what: str,
) -> None:
    layer, query, words = NAMES[family]
    folder = tmp_path / "bad"
    shutil.copytree(homes[family] / "merge", folder)
    weights = read_weights(folder)
    change(weights, layer, query, words)
    write_weights(folder, {name: value.contiguous() for name, value in weights.items()})

    problems = found(homes[family], folder, "one")
    place = where.format(layer=layer, query=query, words=words)
    said = [problem.what for problem in problems if problem.where == place]
    assert len(said) == 1, problems
    assert what in said[0]
    if family == "bert" and change is exchanged:
        assert f"it is the base's `{layer}.attention.self.key.weight`" in said[0]


@pytest.mark.parametrize(
    ("known", "change", "what"),
    [
        ({"n_head": 12}, {"n_head": 8}, "n_head is 8"),
        ({"layer_norm_epsilon": 1e-5}, {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"activation_function": "gelu_new"}, {"activation_function": "relu"}, "is relu"),
        ({"layer_norm_eps": 1e-12}, {"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
        ({"rotary_emb_base": 10000}, {"rotary_emb_base": 500000}, "rope base is 500000.0"),
        ({"global_rope_theta": 1.6e5}, {"global_rope_theta": 1e4}, "global_rope_theta is 10000.0"),
        ({"rotary_pct": 0.25}, {"rotary_pct": 1.0}, "rotary_pct is 1.0"),
    ],
)
def test_entries_of_other_families_are_held_to_the_parents(
    known: dict[str, object], change: dict[str, object], what: str
) -> None:
    assert list(config_faults(known, [known])) == []
    (problem,) = config_faults({**known, **change}, [known])
    assert what in problem.what


def test_a_rope_base_of_one_kind_of_layers_is_held_to_the_parents() -> None:
    def config(local: float) -> dict[str, object]:
        full = {"rope_type": "default", "rope_theta": 1e6}
        sliding = {"rope_type": "default", "rope_theta": local}
        return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}

    assert list(config_faults(config(1e4), [config(1e4)])) == []
    (problem,) = config_faults(config(1e5), [config(1e4)])
    assert "100000.0" in problem.what
