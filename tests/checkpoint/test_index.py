from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergekit_lite.checkpoint import header_text, read_checkpoint
from mergekit_lite.checkpoint.index import INDEX_NAME, index_text, read_index, shard_names
from mergekit_lite.errors import DataError, RecipeError, SourceError
from tests.calls import calls_of
from tests.checkpoints import llama_shapes, tiny_llama, write_json, write_weights


def edit_index(folder: Path, **changes: str | None) -> None:
    """Set (or with None remove) entries of the weight map; dots are written as `__`."""
    path = folder / INDEX_NAME
    index = json.loads(path.read_text())
    for key, file in changes.items():
        name = key.replace("__", ".")
        index["weight_map"].pop(name, None)
        if file is not None:
            index["weight_map"][name] = file
    write_json(path, index)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model", shards=3)


@pytest.mark.parametrize("shards", [1, 4])
def test_all_tensors_of_all_shards_are_found(tmp_path: Path, shards: int) -> None:
    folder = tiny_llama(tmp_path, shards=shards, tied=False)
    header = read_checkpoint(folder)
    shapes = {name: info.shape for name, info in header.tensors.items()}
    assert shapes == llama_shapes(2, 32, 64, 64, tied=False)
    assert list(header.files) == shard_names(shards)
    assert all(header.files[file] == (folder / file).stat().st_size for file in header.files)
    order = [(info.file, info.start) for info in header.tensors.values()]
    assert order == sorted(order)
    assert header.metadata == {"format": "pt"}
    assert header.warnings == ()


def test_a_file_alone_is_a_checkpoint(tmp_path: Path) -> None:
    save_file({"any name": torch.ones(2)}, tmp_path / "x.safetensors")
    header = read_checkpoint(tmp_path / "x.safetensors")
    assert header.tensors["any name"].file == "x.safetensors"
    assert list(header.files) == ["x.safetensors"]


def test_absent_shards_are_counted_and_named(sharded: Path) -> None:
    (sharded / "model-00001-of-00003.safetensors").unlink()
    (sharded / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(RecipeError) as caught:
        read_checkpoint(sharded)
    assert "the index names 3 files, 2 absent: model-00001-of-00003" in str(caught.value)


@pytest.mark.parametrize(
    "file",
    ["../x.safetensors", "a/../../x.safetensors", "/x.safetensors", "..\\x.safetensors",
     "C:\\x.safetensors", "C:/x.safetensors", "a\0.safetensors", ""],
)  # fmt: skip
def test_an_index_that_points_outside_its_folder_is_refused(sharded: Path, file: str) -> None:
    edit_index(sharded, model__norm__weight=file)
    with pytest.raises(DataError, match="points outside its folder"):
        read_checkpoint(sharded)


def test_links_may_lead_out_of_the_folder(sharded: Path, tmp_path: Path) -> None:
    shard = sharded / "model-00002-of-00003.safetensors"
    shard.rename(tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")
    assert read_checkpoint(sharded).warnings == ()


def test_a_tensor_that_is_not_in_its_shard_is_damage(sharded: Path) -> None:
    edit_index(sharded, model__ghost__weight="model-00002-of-00003.safetensors")
    with pytest.raises(DataError) as caught:
        read_checkpoint(sharded)
    assert "model-00002-of-00003.safetensors` lacks tensors that model" in str(caught.value)
    assert "model.ghost.weight" in str(caught.value)


def test_a_tensor_that_the_index_forgot_is_read_with_a_warning(sharded: Path) -> None:
    edit_index(sharded, model__norm__weight=None)
    header = read_checkpoint(sharded)
    assert "model.norm.weight" in header.tensors
    assert "tensors that the index does not list (1)" in header.warnings[0]
    assert "model.norm.weight" in header.warnings[0]


def test_of_two_copies_the_index_chooses(sharded: Path) -> None:
    file = "model-00001-of-00003.safetensors"
    name = "model.norm.weight"
    tensors = {name: torch.zeros(5)}
    listed = json.loads((sharded / INDEX_NAME).read_text())["weight_map"]
    shapes = llama_shapes(2, 32, 64, 64, tied=True)
    tensors |= {n: torch.zeros(shapes[n]) for n, f in listed.items() if f == file}
    save_file(tensors, sharded / file)
    found = read_checkpoint(sharded).tensors[name]
    assert (found.file, found.shape) == ("model-00003-of-00003.safetensors", (32,))


def test_a_wrong_total_size_is_a_warning(sharded: Path) -> None:
    index = json.loads((sharded / INDEX_NAME).read_text())
    right = index["metadata"]["total_size"]
    for total in (right + 1, float(right), "many", None):
        index["metadata"]["total_size"] = total
        write_json(sharded / INDEX_NAME, index)
        warnings = read_checkpoint(sharded).warnings
        assert len(warnings) == (total == right + 1)
        assert all(f"{right + 1:,}" in w and f"{right:,}" in w for w in warnings)


def test_a_stray_weight_file_is_ignored_with_a_warning(sharded: Path) -> None:
    save_file({"model.norm.weight": torch.zeros(1)}, sharded / "model.safetensors")
    header = read_checkpoint(sharded)
    assert header.tensors["model.norm.weight"].shape == (32,)
    assert "model.safetensors" not in header.files
    assert "`model.safetensors` is not in the index" in header.warnings[0]


def test_a_stray_file_beside_a_single_file_model_is_ignored(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    save_file({"layers.0.attention.wq.weight": torch.zeros(1)}, folder / "consolidated.safetensors")
    header = read_checkpoint(folder)
    assert list(header.files) == ["model.safetensors"]
    assert "`consolidated.safetensors` is beside model.safetensors" in header.warnings[0]


def test_files_without_an_index_are_joined_with_a_warning(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path / "two.safetensors")
    header = read_checkpoint(tmp_path)
    assert list(header.tensors) == ["a", "b"]
    assert "has no index" in header.warnings[0]
    save_file({"a": torch.zeros(2)}, tmp_path / "three.safetensors")
    with pytest.raises(
        RecipeError, match=r"`one.safetensors` and .* hold the same tensors \(1\): a"
    ):
        read_checkpoint(tmp_path)


def test_half_a_set_of_shards_without_an_index_is_refused(sharded: Path) -> None:
    (sharded / INDEX_NAME).unlink()
    assert len(read_checkpoint(sharded).files) == 3
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(RecipeError, match="has 2 of the 3 files of `model` and no index"):
        read_checkpoint(sharded)


def test_every_damaged_shard_is_named_at_once(sharded: Path) -> None:
    (sharded / "model-00001-of-00003.safetensors").write_bytes(b"version https://git-lfs.x\n")
    path = sharded / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError) as caught:
        read_checkpoint(sharded)
    assert [len(p.what) > 0 for p in caught.value.problems] == [True, True]
    assert f"`{sharded / 'model-00001-of-00003.safetensors'}` is a git-lfs" in str(caught.value)
    assert "00003.safetensors` is cut short" in str(caught.value)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, SourceError, "no safetensors weights"),
        ({"config.json": "{}"}, SourceError, "no safetensors weights"),
        ({"pytorch_model.bin": ""}, RecipeError, "PyTorch pickles only"),
        ({"m-Q4_K.gguf": ""}, RecipeError, "GGUF files only (`m-Q4_K.gguf`)"),
        (
            {"adapter_config.json": '{"base_model_name_or_path": "org/base"}'},
            RecipeError,
            "is a LoRA of org/base, not a model\n    write `base: org/base` and, for the expert",
        ),
        ({"adapter_config.json": "{"}, RecipeError, "is a LoRA of its base model"),
        ({INDEX_NAME: "[]"}, DataError, "JSON object"),
        ({INDEX_NAME: '{"a": 1, "a": 2}'}, DataError, "`a` appears twice"),
        ({INDEX_NAME: '{"weight_map": ["a"]}'}, DataError, "`weight_map` is not a map"),
        ({INDEX_NAME: '{"weight_map": {"a": 1}}'}, DataError, "`weight_map` is not a map"),
        ({INDEX_NAME: '{"weight_map": {}}'}, SourceError, "names no files"),
        ({INDEX_NAME: '{"weight_map": {"a": "x.bin"}}'}, RecipeError, "lists `x.bin`"),
        ({f"{p}.safetensors.index.json": "{}" for p in "ab"}, RecipeError, "has 2 indexes"),
    ],
)
def test_folders_that_hold_something_else(
    tmp_path: Path, files: dict[str, str], error: type[Exception], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error) as caught:
        read_checkpoint(tmp_path)
    assert message in str(caught.value)


def test_an_index_of_another_name_serves(tmp_path: Path) -> None:
    folder = write_weights(tmp_path, {"a": torch.zeros(1), "b": torch.ones(1)}, shards=2)
    (folder / INDEX_NAME).rename(folder / "diffusion_model.safetensors.index.json")
    header = read_checkpoint(folder)
    assert (list(header.tensors), header.warnings) == (["a", "b"], ())


def test_own_index_is_read_back(tmp_path: Path) -> None:
    files = shard_names(2)
    (tmp_path / INDEX_NAME).write_text(index_text({"b": files[1], "a": files[0]}, 12, 3))
    index = read_index(tmp_path / INDEX_NAME)
    assert index.weight_map == {"a": files[0], "b": files[1]}
    assert (index.total_size, index.files) == (12, files)
    assert files[1] == "model-00002-of-00002.safetensors"
    assert shard_names(1) == ["model.safetensors"]


def test_own_index_equals_that_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path / "in"))
    model.save_pretrained(tmp_path / "out", max_shard_size="20KB")
    text = (tmp_path / "out" / INDEX_NAME).read_text()
    header = read_checkpoint(tmp_path / "out")
    weight_map = {name: info.file for name, info in header.tensors.items()}
    total = sum(info.nbytes for info in header.tensors.values())
    parameters = sum(info.size for info in header.tensors.values())
    assert index_text(weight_map, total, parameters) == text
    assert header.warnings == ()


def test_names_are_not_searched_for_each_tensor(tmp_path: Path) -> None:
    def work(tensors: int) -> int:
        rows = [(f"model.layers.{i // 40}.mlp.experts.{i}.w", "BF16", (8,)) for i in range(tensors)]
        text, _, nbytes = header_text(rows, {})
        folder = tmp_path / str(tensors)
        folder.mkdir()
        with (folder / "model.safetensors").open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text.encode())
            stream.truncate(nbytes)
        return calls_of(lambda: read_checkpoint(folder))

    # A look through all names for each tensor would make sixteen times the calls.
    assert work(4000) < 4.1 * work(1000)
