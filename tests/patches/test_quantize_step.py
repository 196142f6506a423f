"""The step that gives an expert the error that a patch of it would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite import api, patching
from mergekit_lite.errors import RecipeError
from tests.checkpoints import read_weights

SETTINGS: list[dict[str, Any]] = [
    {"codec": "tvq", "bits": 3},
    {"codec": "intq", "bits": 4, "group": 16},
    {"codec": "bitdelta", "scales": "row"},
    {"codec": "topk_sparse", "keep": 0.2},
    {"codec": "svd", "rank": 3},
    {"codec": "lowrank_sparse", "rank": 2, "rounds": 2},
    {"codec": "delta_come", "ratio": 4.0},
]


@pytest.mark.parametrize("params", SETTINGS, ids=lambda p: p["codec"])
def test_a_merge_is_that_of_the_patches(
    params: dict[str, Any], tmp_path: Path, base_folder: Path, expert_folders: dict[str, Path]
) -> None:
    patches = {}
    for name in ("math", "code"):
        patches[name] = str(tmp_path / f"{name}.safetensors")
        own = {key: value for key, value in params.items() if key != "codec"}
        patching.compress(
            str(expert_folders[name]), str(base_folder), patches[name],
            method=params["codec"], **own,
        )  # fmt: skip
    combine = {"task_arithmetic": {"weights": {"math": 0.5, "code": 0.75}}}
    models = {name: str(expert_folders[name]) for name in patches}
    steps: list[Any]
    for name, experts, steps in (
        ("stepped", models, [{"quantize": params}, combine]),
        ("patched", patches, [combine]),
        ("dense", models, [combine]),
    ):
        recipe = {"base": str(base_folder), "experts": experts, "steps": steps}
        api.run(recipe, tmp_path / name)
    stepped, patched, dense = (
        read_weights(tmp_path / name) for name in ("stepped", "patched", "dense")
    )
    for name, value in patched.items():
        assert torch.equal(stepped[name], value), name
    assert any(not torch.equal(stepped[name], dense[name]) for name in dense)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"codec": "compeft"}, "compares all tensors"),
        ({"codec": "ultradelta"}, "name the patch as the expert"),
        ({"codec": "tvq", "rank": 3}, "`tvq` has no parameter `rank`"),
        ({"codec": "intq", "bits": 3}, "bits"),
        ({"bits": 3}, "needs `codec`"),
        ({"codec": "tvx"}, "tvx"),
    ],
)
def test_what_a_step_cannot_do_is_told_when_planned(
    params: dict[str, Any], words: str, base_folder: Path, expert_folders: dict[str, Path]
) -> None:
    recipe = {
        "base": str(base_folder),
        "experts": {"math": str(expert_folders["math"])},
        "steps": [{"quantize": params}, "task_arithmetic"],
    }
    with pytest.raises(RecipeError, match=words):
        api.plan(recipe)
