"""From pickles to safetensors: every tensor, nothing else, and no code."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from torch import Tensor

from mergekit_lite.cli.main import main
from mergekit_lite.engine.events import Event
from mergekit_lite.errors import DataError, MergekitLiteError, RecipeError, SourceError
from mergekit_lite.export import convert as room
from mergekit_lite.export.convert import Converted, convert
from tests.checkpoints import read_weights, tiny_llama, write_json

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def ignore(event: Event) -> None:
    return None


def converted(source: Path) -> tuple[dict[str, Tensor], Converted]:
    out = source.with_name("out")
    done = convert(source, out, ignore)
    assert {path.name for path in source.parent.iterdir()} == {"out", source.name}
    return read_weights(out), done


def pickled(folder: Path, tensors: dict[str, Any], file: str = "pytorch_model.bin") -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / file)
    return folder


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A Llama in one pickle, with its config and tokenizer."""
    folder = tiny_llama(tmp_path / "model")
    tensors = read_weights(folder)
    (folder / "model.safetensors").unlink()
    (folder / "README.md").write_text("# Mine\n")
    (folder / "training_args.bin").write_bytes(b"no tensors")
    return pickled(folder, tensors), tensors


def test_a_model_in_one_file(model: tuple[Path, dict[str, Tensor]]) -> None:
    folder, tensors = model
    found, done = converted(folder)
    same(found, tensors)
    assert (done.files, done.tied) == (["model.safetensors"], {})
    out = folder.with_name("out")
    kept = ["README.md", "chat_template.jinja", "config.json", "generation_config.json",
            "model.safetensors", "tokenizer.json", "tokenizer_config.json"]  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == kept
    assert (out / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert CliRunner().invoke(main, ["inspect", str(out)]).exit_code == 0


def test_a_model_in_several_files_is_read_one_at_a_time(
    model: tuple[Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tensors = model
    (folder / "pytorch_model.bin").unlink()
    names = list(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        pickled(folder, {name: tensors[name] for name in part}, file)
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": weight_map})
    order = []
    real = room.read_pickle

    def read(path: Path) -> dict[str, Tensor]:
        made = sorted(p.name for p in path.parent.with_name("out.partial").glob("*.safetensors"))
        order.append((path.name, len(made)))
        return real(path)

    monkeypatch.setattr(room, "read_pickle", read)
    found, done = converted(folder)
    same(found, tensors)
    assert order == [(f"pytorch_model-0000{n}-of-00002.bin", n - 1) for n in (1, 2)]
    index = json.loads((folder.with_name("out") / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == done.weight_map
    assert set(done.files) == {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    assert index["metadata"]["total_size"] == sum(t.numel() * 2 for t in tensors.values())


@pytest.mark.parametrize("zipped", [True, False])
def test_dtypes_shapes_and_strides(tmp_path: Path, zipped: bool) -> None:
    tensors = {
        "wide": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.ones(3).half(),
        "whole": torch.arange(4),
        "truth": torch.tensor([True, False]),
        "one": torch.tensor(2.5).double(),
        "none": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(tensors, folder / "weights.pt", _use_new_zipfile_serialization=zipped)
    found, _ = converted(folder)
    bits = {name: value.detach().contiguous() for name, value in tensors.items()}
    same(found, bits)


def test_codes_are_kept_as_they_are(tmp_path: Path) -> None:
    codes = torch.arange(8, dtype=torch.uint8).view(torch.float8_e5m2)
    found, _ = converted(pickled(tmp_path / "model", {"a.weight": codes}))
    assert found["a.weight"].dtype == torch.float8_e5m2
    assert torch.equal(found["a.weight"].view(torch.uint8), codes.view(torch.uint8))


@pytest.mark.parametrize("ties", [True, None, False])
def test_tensors_that_share_their_numbers(tmp_path: Path, ties: bool | None) -> None:
    shared = torch.randn(4, 3)
    tensors = {HEAD: shared, EMBEDDING: shared, "part": shared[:2], "copy": shared.clone()}
    folder = pickled(tmp_path / "model", tensors)
    write_json(folder / "config.json", {} if ties is None else {"tie_word_embeddings": ties})
    found, done = converted(folder)
    if ties is False:
        same(found, tensors)
        return
    assert done.tied == {HEAD: EMBEDDING}
    same(found, {name: value for name, value in tensors.items() if name != HEAD})
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", HEAD: EMBEDDING}


def test_an_adapter(tmp_path: Path) -> None:
    name = "base_model.model.layers.0.q_proj.lora_A.weight"
    folder = pickled(tmp_path / "lora", {name: torch.ones(2, 4)}, "adapter_model.bin")
    write_json(folder / "adapter_config.json", {"peft_type": "LORA"})
    converted(folder)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("open('exploded', 'w').close()",)


def refused(source: Path, kind: type[MergekitLiteError], *says: str) -> None:
    """Require a refusal that leaves nothing behind."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(kind) as caught:
        convert(source, source.with_name("out"), ignore)
    (problem,) = caught.value.problems
    for words in says:
        assert words in f"{problem.what} {problem.hint}"
    assert problem.hint or kind is SourceError
    assert sorted(source.parent.iterdir()) == before


@pytest.mark.parametrize("form", ["zip", "old", "bare"])
def test_a_pickle_that_would_run_code_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    file = folder / "pytorch_model.bin"
    content = {"a.weight": torch.ones(1), "b.weight": Bomb()}
    if form == "bare":
        file.write_bytes(pickle.dumps(content["b.weight"]))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    refused(folder, DataError, str(file), "nothing of it was run")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"epoch": 3, "a.weight": torch.ones(1)}, ("more than tensors", "`epoch` (int)")),
        ({"state_dict": {"a": torch.ones(1)}}, ("`state_dict` (dict)", "state_dict()")),
        ([torch.ones(1)], ("holds a list",)),
        ({"a": torch.ones(2).to_sparse()}, ("sparse", "`a`")),
        ({"a": torch.ones(2, dtype=torch.complex128)}, ("complex128", "safetensors")),
    ],
)
def test_what_is_no_tensor_is_named(tmp_path: Path, content: Any, says: tuple[str, ...]) -> None:
    refused(pickled(tmp_path / "model", content), RecipeError, *says)


def test_a_damaged_file(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "model", {"a": torch.ones(1000)})
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:2000])
    refused(folder, DataError, str(file), "fetch it again")


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.mkdir()
    (ready / "model.safetensors").touch()
    refused(ready, RecipeError, "holds safetensors already")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "training_args.bin").touch()
    refused(empty, SourceError, "holds no PyTorch pickles")
    refused(tmp_path / "nowhere", SourceError, "no folder or file")
    parts = pickled(tmp_path / "parts", {"a": torch.ones(1)}, "pytorch_model-00002-of-00003.bin")
    refused(parts, RecipeError, "file 1 of 3, file 3 of 3", "fetch the missing")
    pickled(parts, {"a": torch.ones(1)}, "other.pt")
    refused(parts, RecipeError, "several pickles", "other.pt")
    write_json(parts / "pytorch_model.bin.index.json", {"weight_map": {"a": "gone.bin"}})
    refused(parts, RecipeError, "lacks gone.bin")
    write_json(parts / "pytorch_model.bin.index.json", {"weight_map": {"a": "../ready/x.bin"}})
    refused(parts, DataError, "not a map to files beside it")


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    for number in (1, 2):
        folder = pickled(
            tmp_path / "model", {"a": torch.ones(1)}, f"pytorch_model-0000{number}-of-00002.bin"
        )
    with pytest.raises(RecipeError, match="`a` is in `model-00001-of-00002"):
        convert(folder, tmp_path / "out", ignore)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_outputs_that_are_in_the_way(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "model", {"a": torch.ones(1)})
    out = tmp_path / "out"
    out.mkdir()
    (out / "x").touch()
    with pytest.raises(RecipeError, match="not an empty folder"):
        convert(folder, out, ignore)
    with pytest.raises(RecipeError, match="lie in each other"):
        convert(folder, folder / "inside", ignore)
    (tmp_path / "new.partial").mkdir()
    with pytest.raises(RecipeError, match="in the way"):
        convert(folder, tmp_path / "new", ignore)
    (tmp_path / "new.partial" / room.MARK).touch()
    (tmp_path / "new.partial" / "old.safetensors").touch()
    convert(folder, tmp_path / "new", ignore)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command(model: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, tensors = model
    assert call("convert", folder).exit_code == 2
    told = call("convert", folder, "-o", tmp_path / "out")
    assert (told.exit_code, told.stdout) == (0, f"{tmp_path / 'out'}\n")
    assert f"{len(tensors)} tensors in 1 file" in told.stderr
    data = json.loads(call("convert", folder, "-o", tmp_path / "two", "--json").stdout)
    assert data["weight_map"] == dict.fromkeys(tensors, "model.safetensors")
    text = f"base: {folder}\nexperts: {{a: {folder}}}\nsteps: [linear]\n"
    (tmp_path / "recipe.yaml").write_text(text)
    refusal = call("check", tmp_path / "recipe.yaml")
    assert refusal.exit_code == 2
    assert f"`mergekit-lite convert {folder} -o DIR`" in refusal.stderr
