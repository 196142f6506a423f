"""Folders that are not the model they seem to be: shards, indexes, other formats."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.plan.hollow import write_adapter

from .conftest import LINEAR, World
from .damage import INDEX, edit_config, edit_index, sharded


def test_shard_that_the_index_names_is_missing(world: World) -> None:
    sharded(world.math)[1].unlink()
    world.refused(
        2,
        "recipe.yaml:3:17",
        "the index names 3 files, 1 absent: model-00002-of-00003.safetensors",
        "fetch the missing files",
    )


def test_shard_missing_without_an_index(world: World) -> None:
    sharded(world.math)[0].unlink()
    (world.math / INDEX).unlink()
    world.refused(2, "recipe.yaml:3:17", "has 2 of the 3 files", "no index", "fetch")


@pytest.mark.parametrize(
    "file", ["../base/model.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "C:\\x"]
)
def test_index_that_points_outside_its_folder(world: World, file: str) -> None:
    sharded(world.math)
    edit_index(world.math, lambda index: index["weight_map"].update({"model.norm.weight": file}))
    world.refused(3, "recipe.yaml:3:17", INDEX, "points outside its folder", "do not trust")


def _misplace(index: dict[str, Any]) -> None:
    files = index["weight_map"]
    files["model.embed_tokens.weight"] = files["model.norm.weight"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_misplace, ("lacks tensors", "model.embed_tokens.weight", "different checkpoints")),
        (
            lambda index: index["weight_map"].update(
                {"ghost.weight": "model-00001-of-00003.safetensors"}
            ),
            ("lacks tensors", "ghost.weight"),
        ),
        (lambda index: index.update(weight_map=[1]), (INDEX, "not a map of strings")),
        (lambda index: index.update(weight_map={"a": 1}), (INDEX, "not a map of strings")),
        (lambda index: index.pop("weight_map"), (INDEX, "not a map of strings")),
    ],
)
def test_index_that_disagrees_with_the_files(
    world: World, change: Callable[[dict[str, Any]], object], says: tuple[str, ...]
) -> None:
    sharded(world.math)
    edit_index(world.math, change)
    world.refused(3, "recipe.yaml:3:17", str(world.math), *says)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": {"a": "b", "a": "c"}}', "\0"])
def test_index_that_is_no_json(world: World, text: str) -> None:
    sharded(world.math)
    (world.math / INDEX).write_text(text)
    world.refused(3, "recipe.yaml:3:17", str(world.math / INDEX), "JSON")


def test_index_of_pickles(world: World) -> None:
    sharded(world.math)
    edit_index(world.math, lambda index: index["weight_map"].update({"x": "pytorch_model.bin"}))
    world.refused(2, INDEX, "`pytorch_model.bin`", "convert")


def test_tensor_in_two_files(world: World) -> None:
    (world.math / "model.safetensors").rename(world.math / "a.safetensors")
    shutil.copy(world.math / "a.safetensors", world.math / "b.safetensors")
    world.refused(2, "`a.safetensors` and `b.safetensors` hold the same tensors (20)", "of one")


def test_stray_weight_file_is_warned_of(world: World) -> None:
    sharded(world.math)
    shutil.copy(world.code / "model.safetensors", world.math / "consolidated.safetensors")
    world.warned("`consolidated.safetensors` is not in the index and is ignored")


def test_stray_file_beside_a_single_one_is_warned_of(world: World) -> None:
    shutil.copy(world.code / "model.safetensors", world.math / "old.safetensors")
    world.warned("`old.safetensors` is beside model.safetensors and is ignored")


def test_wrong_total_size_is_warned_of_and_recomputed(world: World) -> None:
    sharded(world.base)
    edit_index(world.base, lambda index: index["metadata"].update(total_size=7))
    path = world.write(LINEAR)
    result = world.call("run", path, "-o", world.out, "--shard-size", "20kB")
    assert result.exit_code == 0, result.stderr
    assert "warning: recipe.yaml:1:7" in result.stderr
    assert "total_size 7" in result.stderr
    index = json.loads((world.out / INDEX).read_text())
    assert index["metadata"]["total_size"] > 7
    assert world.call("verify", world.out).exit_code == 0


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("open('exploded', 'w').close()",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_malicious_pickle_is_refused_unread(world: World, name: str) -> None:
    (world.math / "model.safetensors").unlink()
    (world.math / name).write_bytes(pickle.dumps(_Bomb()))
    world.refused(2, "recipe.yaml:3:17", f"`{name}`", "can run code", "convert it")
    text = LINEAR.replace("model: math", f"model: math/{name}")
    world.refused(2, f"math/{name}`", "can run code", "convert it", text=text)
    assert not (world.folder / "exploded").exists()


def test_pickle_called_safetensors_is_refused_unread(world: World) -> None:
    (world.math / "model.safetensors").write_bytes(pickle.dumps(_Bomb()))
    world.refused(3, str(world.math / "model.safetensors"))
    assert not (world.folder / "exploded").exists()


def test_gguf(world: World) -> None:
    (world.math / "model.safetensors").rename(world.math / "model-Q4_K_M.gguf")
    world.refused(2, "GGUF", "model-Q4_K_M.gguf", "16-bit")
    text = LINEAR.replace("model: math", "model: math/model-Q4_K_M.gguf")
    world.refused(2, "recipe.yaml:3:17", "GGUF", "16-bit", text=text)


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq", "bitsandbytes"])
def test_quantised_by_its_config(world: World, method: str) -> None:
    edit_config(world.math, quantization_config={"quant_method": method, "bits": 4})
    world.refused(2, "recipe.yaml:3:9", "`math`", f"quantised ({method}", "not supported", "16-bit")


def test_quantised_base(world: World) -> None:
    edit_config(world.base, quantization_config={"quant_method": "gptq", "bits": 4})
    world.refused(2, "recipe.yaml:1:7", "`base` is quantised (gptq", "16-bit")


def test_adapter_given_as_a_model(world: World) -> None:
    write_adapter(world.folder / "lora", {"model.layers.0.self_attn.q_proj": (32, 32)})
    world.refused(
        2,
        "recipe.yaml:3:17",
        "`lora` is a LoRA of org/base",
        "base: org/base",
        "lora: lora",
        text=LINEAR.replace("model: math", "model: lora"),
    )


def test_model_given_as_an_adapter(world: World) -> None:
    world.refused(
        2,
        "recipe.yaml:3:16",
        "`math` is a whole model",
        "model: math",
        text=LINEAR.replace("{model: math", "{lora: math"),
    )


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("mth", ("no folder or file", "did you mean `math`?")),
        ("nowhere", ("no folder or file", "config.json")),
        ("org/some-model", ("Hub repositories are not fetched", "hf download org/some-model")),
        ("org/some-model@v2", ("hf download org/some-model --revision v2",)),
        ("math/config.json/deep", ("no folder or file", "config.json` is a file, not a folder")),
        ("$NO_SUCH_PLACE/math", ("environment variable", "export it")),
        ("empty", ("holds no safetensors weights", "config.json")),
    ],
)
def test_models_that_are_not_there(world: World, reference: str, says: tuple[str, ...]) -> None:
    (world.folder / "empty").mkdir()
    text = LINEAR.replace("model: math", f"model: {reference}")
    world.refused(5, "recipe.yaml:3:17", *says, text=text)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("https://example.org/m", ("address", "download")),
        ('"@inner"', ("there is no stage `inner`", "define it")),
        ("math/config.json", ("one file of a model", "give its folder")),
        ('""', ("empty",)),
        ("recipe.yaml", ("is not a model", ".safetensors")),
        ("zoo:smoll", ("the zoo has no `smoll`", "did you mean `smol`?")),
    ],
)
def test_references_that_name_no_model(world: World, reference: str, says: tuple[str, ...]) -> None:
    text = LINEAR.replace("model: math", f"model: {reference}")
    world.refused(2, "recipe.yaml:3:", *says, text=text)


def test_config_that_is_no_json(world: World) -> None:
    (world.base / "config.json").write_text("{")
    world.refused(3, "recipe.yaml:1:7", str(world.base / "config.json"), "JSON")


def test_link_that_leads_nowhere(world: World, tmp_path: Path) -> None:
    file = world.math / "model.safetensors"
    file.unlink()
    file.symlink_to(tmp_path / "gone")
    world.refused(5, "recipe.yaml:3:17", str(world.math))
