"""What stores refuse, and that nothing is left half-written."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mergekit_lite import api, storing
from mergekit_lite.checkpoint.spool import Spool
from mergekit_lite.checkpoint.store import KEY
from mergekit_lite.errors import DataError, MergekitLiteError, RecipeError, SourceError
from mergekit_lite.sources import resolve, stored_tasks
from tests.checkpoints import perturbed, read_weights, tiny_llama, write_weights
from tests.patches.stores import deltas, made

UP = "model.layers.1.mlp.up_proj.weight"


def test_a_base_that_differs_is_named(store: Path, base_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base_folder, tmp_path / "other")
    weights = read_weights(other)
    weights[UP][3, 4] += 1
    write_weights(other, weights)
    with pytest.raises(RecipeError) as error:
        storing.materialize(store, "math", tmp_path / "out", base=str(other))
    problems = [str(problem) for problem in error.value.problems]
    assert len(problems) == 1
    assert UP in problems[0]
    assert not (tmp_path / "out").exists()
    third = tiny_llama(tmp_path / "third", layers=3)
    with pytest.raises(RecipeError, match="made against another base"):
        storing.materialize(store, "math", tmp_path / "out", base=str(third))


def test_the_base_is_found_by_its_name(
    store: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="neither beside it nor here"):
        storing.materialize(store, "math", tmp_path / "out")
    shutil.copytree(base_folder, tmp_path / base_folder.name)
    storing.materialize(store, "math", tmp_path / "out")
    storing.materialize(store, "math", tmp_path / "named", base=str(base_folder))
    assert read_weights(tmp_path / "out")[UP].equal(read_weights(tmp_path / "named")[UP])


def test_flipped_bits_and_missing_ends_are_found(
    store: Path, base_folder: Path, tmp_path: Path
) -> None:
    """Whatever byte is changed, the task is refused, and nothing is written."""
    data = store.read_bytes()
    begin, end = (data.index(key.encode()) for key in (f'{KEY}"', f"{KEY}_sha256"))
    found = stored_tasks(str(store), Path())
    assert found is not None
    tensors = found[1].tensors
    inside = {key: tensors[f"{UP}:{key}"].start + 5 for key in ("vector", "mask:math")}
    broken = tmp_path / "broken.safetensors"
    for place in [*range(begin, end + 60, (end - begin) // 15), *inside.values()]:
        harmed = bytearray(data)
        harmed[place] ^= 1
        broken.write_bytes(harmed)
        with pytest.raises(MergekitLiteError) as error:
            storing.materialize(broken, "math", tmp_path / "out", base=str(base_folder))
        if place in inside.values():
            assert isinstance(error.value, DataError)
            assert UP in str(error.value)
        assert not (tmp_path / "out").exists()
    # The other task does not need what is broken last: the mask of this one.
    storing.materialize(broken, "code", tmp_path / "out", base=str(base_folder))
    broken.write_bytes(data[:-100])
    with pytest.raises(DataError, match="cut short"):
        storing.materialize(broken, "code", tmp_path / "out2", base=str(base_folder))


def changed(store: Path, old: str, new: str, tmp_path: Path, **tensors: torch.Tensor) -> Path:
    """Return a store whose description says something else, with the right checksum."""
    with safe_open(store, "pt") as file:
        metadata = dict(file.metadata())
    assert old in metadata[KEY]
    told = metadata[KEY].replace(old, new)
    metadata |= {KEY: told, f"{KEY}_sha256": hashlib.sha256(told.encode()).hexdigest()}
    later = tmp_path / "later.safetensors"
    save_file(load_file(store) | tensors, later, metadata=metadata)
    return later


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"version":1', '"version":2', "version 2, this program reads version 1"),
        ('"tasks":{"math"', '"tasks":{"ma/th"', "not described as it should be"),
        ('"base_columns":["dtype"', '"base_columns":["type"', "not described as it should be"),
        ('"math":{"model.embed', '"math":{"other.embed', "the base has no `other.embed"),
        ('"masked"', '"same"', "is said to be the base's, and is stored"),
    ],
)
def test_descriptions_that_do_not_fit(
    old: str, new: str, words: str, store: Path, base_folder: Path, tmp_path: Path
) -> None:
    later = changed(store, old, new, tmp_path)
    with pytest.raises(DataError, match=words):
        storing.materialize(later, "math", tmp_path / "out", base=str(base_folder))
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_the_description_does_not_know(store: Path, tmp_path: Path) -> None:
    strangers = {"model.norm.weight:mask:physics": torch.zeros(4, dtype=torch.uint8)}
    later = changed(store, '"version":1', '"version":1', tmp_path, **strangers)
    with pytest.raises(DataError, match="mask:physics` is stored, and the description"):
        storing.summary(later)


def test_nothing_to_pack(base_folder: Path, experts: dict[str, str], tmp_path: Path) -> None:
    same = shutil.copytree(base_folder, tmp_path / "same")
    for method in ("emr", "t_switch"):
        with pytest.raises(DataError, match="the task `same` is its base"):
            made(tmp_path, {**experts, "same": str(same)}, base_folder, method=method)
    with pytest.raises(RecipeError, match="nothing to pack"):
        made(tmp_path, {}, base_folder)
    with pytest.raises(RecipeError, match="no name for an expert"):
        made(tmp_path, {"a:b": experts["math"]}, base_folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["same"]


def flat(folder: Path, value: float, name: str) -> str:
    tensors = {"a": torch.full((40, 3), value), "b": torch.full((5,), value)}
    save_file(tensors, folder / f"{name}.safetensors")
    return str(folder / f"{name}.safetensors")


def test_a_task_that_all_others_oppose_is_refused(tmp_path: Path) -> None:
    base = flat(tmp_path, 0.0, "base")
    three = {"up": flat(tmp_path, 1.0, "up"), "down": flat(tmp_path, -2.0, "down")}
    out = tmp_path / "store.safetensors"
    with pytest.raises(DataError, match="nothing is left of the task `up`") as error:
        storing.pack(three, base, out)
    assert "t_switch" in error.value.problems[0].hint
    assert not out.exists()
    storing.pack(three, base, out, method="t_switch", keep=1.0)
    assert all((value == 1).all() for value in deltas(f"{out}#up").values())


def test_less_than_one_entry_and_equal_differences(tmp_path: Path) -> None:
    base = flat(tmp_path, 0.0, "base")
    one = {"one": flat(tmp_path, 0.5, "one")}
    out = tmp_path / "store.safetensors"
    with pytest.raises(RecipeError, match="is less than one"):
        storing.pack(one, base, out, method="t_switch", keep=1e-7)
    # Their deviation is 0, their norm is not.
    for method in ("emr", "tall_mask", "t_switch", "tsv_compress"):
        params = {"keep": 1.0} if method == "t_switch" else {}
        storing.pack(one, base, out, method=method, overwrite=True, **params)
        for value in deltas(f"{out}#one").values():
            assert torch.allclose(value, torch.tensor(0.5), atol=1e-3)


def test_tensors_that_are_no_floats_are_exact(tmp_path: Path, base_folder: Path) -> None:
    weights = read_weights(base_folder)
    weights |= {"ids": torch.arange(9), "mask": torch.tensor([True, False])}
    base = shutil.copytree(base_folder, tmp_path / "base")
    write_weights(base, weights)
    folders = {}
    for number, task in enumerate("ab"):
        folder = perturbed(base, tmp_path / task, seed=number, scale=0.02)
        write_weights(folder, read_weights(folder) | {"ids": torch.arange(9) * (number + 1)})
        folders[task] = str(folder)
    file = made(tmp_path, folders, base)
    assert [task.whole for task in storing.summary(file).tasks.values()] == [0, 1]
    for number, task in enumerate("ab"):
        storing.materialize(file, task, tmp_path / f"{task}-out", base=str(base))
        result = read_weights(tmp_path / f"{task}-out")
        assert torch.equal(result["ids"], torch.arange(9) * (number + 1))
        assert torch.equal(result["mask"], weights["mask"])
    write_weights(Path(folders["a"]), read_weights(Path(folders["a"])) | {"ids": torch.arange(8)})
    with pytest.raises(RecipeError, match="ids"):
        made(tmp_path, folders, base, "other")
    assert not (tmp_path / "other.safetensors").exists()


def test_numbers_that_are_not_finite(
    tmp_path: Path, base_folder: Path, experts: dict[str, str]
) -> None:
    tuned = perturbed(base_folder, tmp_path / "tuned", seed=3, scale=0.02)
    weights = read_weights(tuned)
    weights["model.norm.weight"][2] = float("nan")
    write_weights(tuned, weights)
    for method in ("emr", "t_switch"):
        with pytest.raises(DataError, match="1 of 32 entries are NaN") as error:
            made(tmp_path, {**experts, "bad": str(tuned)}, base_folder, method=method)
        assert "bad: model.norm.weight" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


def test_places_that_do_not_fit(store: Path, base_folder: Path, experts: dict[str, str]) -> None:
    before = store.read_bytes()
    for out, words in (
        (store.with_suffix(".bin"), "is a `.safetensors` file"),
        (store, "is there already"),
        (Path(experts["math"]) / "model.safetensors", "is a file of the input `math`"),
    ):
        with pytest.raises(RecipeError, match=words):
            storing.pack(experts, str(base_folder), out)
    assert store.read_bytes() == before
    storing.pack(experts, str(base_folder), store, overwrite=True, method="tall_mask")
    assert store.read_bytes() != before


def test_what_is_taken_for_what(
    store: Path, base_folder: Path, experts: dict[str, str], tmp_path: Path
) -> None:
    recipe = {"base": str(base_folder), "steps": ["task_arithmetic"]}
    with pytest.raises(RecipeError, match="is a store of 2 tasks: math, code") as error:
        api.plan({**recipe, "experts": {"a": str(store)}})
    assert f"{store}#math" in error.value.problems[0].hint
    with pytest.raises(RecipeError, match="has no task `mat`") as error:
        api.plan({**recipe, "experts": {"a": {"store": str(store), "task": "mat"}}})
    assert "did you mean `math`?" in error.value.problems[0].hint
    with pytest.raises(RecipeError, match="is a patch of base, not a model"):
        api.plan({**recipe, "base": f"{store}#math", "experts": {"a": str(base_folder)}})
    with pytest.raises(RecipeError, match="is a patch, not a model") as error:
        made(tmp_path, {**experts, "third": f"{store}#math"}, base_folder, "other")
    assert "expert `third`" in str(error.value)
    weights = Path(experts["math"]) / "model.safetensors"
    with pytest.raises(RecipeError, match="is no store"):
        storing.summary(weights)
    with pytest.raises(RecipeError, match="is no store, and so has no task `a`"):
        resolve(f"{weights}#a", relative_to=Path())
    with pytest.raises(SourceError):
        storing.summary(tmp_path / "none.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(store, folder)
    with pytest.raises(RecipeError, match="holds a store"):
        api.plan({**recipe, "experts": {"a": str(folder)}})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["add", "finish"])
def test_a_full_disk_leaves_nothing(
    call: str,
    code: int,
    tmp_path: Path,
    base_folder: Path,
    experts: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: Spool, *_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Spool, call, full)
    with pytest.raises(OSError, match=os.strerror(code)):
        made(tmp_path, experts, base_folder)
    assert list(tmp_path.iterdir()) == []
