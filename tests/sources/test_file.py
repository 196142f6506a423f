from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.sources import resolve
from tests.checkpoints import tiny_llama


def test_a_file_with_any_names_is_a_model(tmp_path: Path) -> None:
    save_file({"any name": torch.tensor([1.0, 2.0])}, tmp_path / "x.safetensors")
    (tmp_path / "config.json").write_text("{}")
    model = resolve("./x.safetensors", relative_to=tmp_path)
    assert model.root == tmp_path / "x.safetensors"
    assert (model.kind, model.config, model.companions) == ("checkpoint", None, ())
    info = model.header.tensors["any name"]
    stored = bytearray(8)
    model.open(info.file).read_into(stored, info.start)
    assert torch.frombuffer(stored, dtype=torch.float32).tolist() == [1, 2]


def test_all_spellings_of_a_file_have_one_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    spellings = ["x.safetensors", "./link/x.safetensors", "~/x.safetensors"]
    roots = {resolve(spelling, relative_to=tmp_path).root for spelling in spellings}
    assert roots == {tmp_path.resolve() / "x.safetensors"}


def test_a_linked_file_keeps_its_name(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "blob")
    (tmp_path / "x.safetensors").symlink_to("blob")
    model = resolve("x.safetensors", relative_to=tmp_path)
    assert list(model.header.files) == ["x.safetensors"]
    model.open("x.safetensors").close()


def test_one_shard_of_many_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, shards=2)
    with pytest.raises(RecipeError) as caught:
        resolve("model-00002-of-00002.safetensors", relative_to=folder)
    assert "is file 2 of a model of 2" in str(caught.value)
    assert f"give its folder: `{folder}`" in str(caught.value)


def test_the_weights_of_an_adapter_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RecipeError, match="give its folder: `lora: "):
        resolve("adapter_model.safetensors", relative_to=tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"version https://git-lfs.example/spec/v1\n")
    with pytest.raises(DataError, match=r"x\.safetensors` is a git-lfs pointer"):
        resolve("x.safetensors", relative_to=tmp_path)


def test_a_folder_of_such_a_name_is_a_folder(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "odd.safetensors")
    assert resolve("odd.safetensors", relative_to=tmp_path).root == folder
