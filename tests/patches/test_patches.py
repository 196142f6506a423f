"""Patches end to end: made, applied, merged, and refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_lite import api, patching
from mergekit_lite.checkpoint.patch import KEY
from mergekit_lite.checkpoint.spool import Spool
from mergekit_lite.compress import scheme_named
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.packed import unpacked
from mergekit_lite.errors import DataError, MergekitLiteError, RecipeError
from mergekit_lite.plan.types import Plan
from mergekit_lite.sources import resolve
from tests.checkpoints import perturbed, read_weights, tiny_llama, write_weights

CODECS: list[tuple[str, dict[str, Any]]] = [
    ("compeft", {"keep": 0.2, "alpha": 2.0}),
    ("compeft", {"keep": 0.2, "form": "masks", "scale": "mean_abs"}),
    ("bitdelta", {}),
    ("bitdelta", {"scales": "row", "embeddings": True}),
    ("topk_sparse", {"keep": 0.3}),
    ("svd", {"rank": 4}),
    ("intq", {"bits": 4, "group": 16}),
    ("tvq", {"bits": 3}),
    ("lowrank_sparse", {"rank": 4, "keep": 0.05}),
    ("delta_come", {"ratio": 4.0}),
    ("ultradelta", {"keep": 0.3, "bits": 4}),
]


def deltas(patch: Path) -> dict[str, torch.Tensor]:
    """Return every compressed difference of a patch, decoded in one go."""
    model = resolve(str(patch), relative_to=Path(), kind="patch")
    readers = Readers({"patch": model})
    found = {}
    assert model.adapter is not None
    for name, factors in model.adapter.factors.items():
        packed = readers.packed("patch", factors.packed)
        out = np.empty(prod(packed.shape), np.float32)
        unpacked(packed, "patch", readers).fill(0, out.size, out.view(np.uint8))
        found[name] = torch.from_numpy(out).reshape(packed.shape)
    readers.close()
    return found


def made(tmp_path: Path, expert: Path, base: Path, name: str = "p", **params: Any) -> Path:
    out = tmp_path / f"{name}.safetensors"
    patching.compress(str(expert), str(base), out, **params)
    return out


@pytest.fixture
def patch(tmp_path: Path, base_folder: Path, expert_folders: dict[str, Path]) -> Path:
    return made(tmp_path, expert_folders["math"], base_folder, keep=0.2)


@pytest.mark.parametrize(("method", "params"), CODECS)
def test_applied_is_base_plus_decoded(
    method: str,
    params: dict[str, Any],
    tmp_path: Path,
    base_folder: Path,
    expert_folders: dict[str, Path],
) -> None:
    file = made(tmp_path, expert_folders["math"], base_folder, method=method, **params)
    patching.apply(str(file), str(base_folder), tmp_path / "out")
    base, tuned = read_weights(base_folder), read_weights(expert_folders["math"])
    result, added = read_weights(tmp_path / "out"), deltas(file)
    missed = total = 0.0
    for name, value in base.items():
        before = value.float()
        if name in added:
            wanted = torch.where(added[name] == 0, before, before + added[name])
            assert torch.equal(result[name], wanted.bfloat16()), name
            gap = tuned[name].float() - before
            missed += float((gap - added[name]).double().square().sum())
            total += float(gap.double().square().sum())
        else:
            assert torch.equal(result[name], tuned[name]), name
    summary = patching.compress(
        str(expert_folders["math"]), str(base_folder), file, method=method, overwrite=True, **params
    )
    assert summary.compressed.error == pytest.approx((missed / total) ** 0.5, rel=1e-4)
    assert summary.file_bytes == file.stat().st_size
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_the_same_patch_every_time(
    tmp_path: Path, base_folder: Path, expert_folders: dict[str, Path]
) -> None:
    one = made(tmp_path, expert_folders["math"], base_folder, "one")
    other = made(tmp_path, expert_folders["math"], base_folder, "other")
    assert one.read_bytes() == other.read_bytes()
    assert str(tmp_path).encode() not in one.read_bytes()
    assert list(tmp_path.iterdir()) == [one, other] or set(tmp_path.iterdir()) == {one, other}


STEPS: list[list[Any]] = [
    [{"task_arithmetic": {"weights": {"a": 0.5, "b": 0.7}}}],
    [{"ties": {"density": 0.3}}],
    [{"magnitude": {"density": 0.3, "scope": "model"}}, "task_arithmetic"],
    ["tsv_merge"],
    [{"linear": {"weights": {"a": 0.5, "b": 0.5}}}],
]


@pytest.mark.parametrize("steps", STEPS, ids=str)
@pytest.mark.parametrize("method", ["compeft", "svd"])
def test_patches_merge_as_what_they_decode_to(
    method: str,
    steps: list[Any],
    tmp_path: Path,
    base_folder: Path,
    expert_folders: dict[str, Path],
) -> None:
    """An fp32 base of zeros makes an expert its own difference, exactly."""
    zeros = {name: torch.zeros_like(v).float() for name, v in read_weights(base_folder).items()}
    base = shutil.copytree(base_folder, tmp_path / "zero")
    write_weights(base, zeros)
    experts, dense = {}, {}
    for name, expert in (("a", "math"), ("b", "code")):
        tuned = {
            key: value.float() - read_weights(base_folder)[key].float()
            for key, value in read_weights(expert_folders[expert]).items()
        }
        folder = shutil.copytree(base, tmp_path / name)
        write_weights(folder, tuned)
        file = made(tmp_path, folder, base, f"{name}-patch", method=method)
        experts[name] = {"model": str(file)}
        whole = shutil.copytree(base, tmp_path / f"{name}-dense")
        write_weights(whole, tuned | deltas(file))
        dense[name] = {"model": str(whole)}
    recipe = {"base": str(base), "steps": steps}
    api.run({**recipe, "experts": experts}, tmp_path / "packed")
    api.run({**recipe, "experts": dense}, tmp_path / "dense")
    left, right = read_weights(tmp_path / "packed"), read_weights(tmp_path / "dense")
    assert any(value.abs().max() > 0 for value in left.values())
    for name, value in right.items():
        assert torch.equal(left[name], value), name


def test_a_plan_with_patches_is_rebuilt_from_text(patch: Path, base_folder: Path) -> None:
    recipe = {
        "base": str(base_folder),
        "experts": {"p": {"model": str(patch)}},
        "steps": ["task_arithmetic"],
    }
    plan = api.plan(recipe)
    assert plan.inputs["p"].kind == "patch"
    assert Plan.from_json(plan.to_json()) == plan


def test_a_base_that_differs_is_named(patch: Path, base_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base_folder, tmp_path / "other")
    weights = read_weights(other)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] += 1
    write_weights(other, weights)
    with pytest.raises(RecipeError) as error:
        patching.apply(str(patch), str(other), tmp_path / "out")
    problems = [str(problem) for problem in error.value.problems]
    assert len(problems) == 1
    assert "model.layers.1.mlp.up_proj.weight" in problems[0]
    assert "`base`" in problems[0]
    assert not (tmp_path / "out").exists()
    # The right one's answer is remembered; that of the wrong one is not.
    patching.apply(str(patch), str(base_folder), tmp_path / "out")
    with pytest.raises(RecipeError):
        patching.apply(str(patch), str(other), tmp_path / "out2")


def test_a_base_of_other_tensors_is_refused_by_its_header(patch: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", layers=3)
    with pytest.raises(RecipeError, match="made against another base") as error:
        api.plan({"base": str(other), "experts": {"p": str(patch)}, "steps": ["task_arithmetic"]})
    assert "model.layers.2" in str(error.value)


def test_flipped_bits_and_missing_ends_are_found(
    patch: Path, base_folder: Path, tmp_path: Path
) -> None:
    """Whatever byte is changed, the patch is refused, and nothing is written."""
    data = patch.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    model = resolve(str(patch), relative_to=Path())
    codes = model.header.tensors["model.embed_tokens.weight:codes"]
    broken = tmp_path / "broken.safetensors"
    places = [*range(9, begin, begin // 40), begin, codes.start + 5, len(data) - 1]
    for place in places:
        harmed = bytearray(data)
        harmed[place] ^= 1
        broken.write_bytes(harmed)
        with pytest.raises(MergekitLiteError) as error:
            patching.apply(str(broken), str(base_folder), tmp_path / "out")
        if place == codes.start + 5:
            assert isinstance(error.value, DataError)
            assert "model.embed_tokens.weight" in str(error.value)
        assert not (tmp_path / "out").exists()
    broken.write_bytes(data[:-100])
    with pytest.raises(DataError, match="cut short"):
        patching.apply(str(broken), str(base_folder), tmp_path / "out")


def test_another_version_is_refused(patch: Path, base_folder: Path, tmp_path: Path) -> None:
    import hashlib

    from safetensors import safe_open

    with safe_open(patch, "pt") as file:
        metadata = dict(file.metadata())
    told = metadata[KEY].replace('"version":1', '"version":2')
    metadata |= {KEY: told, f"{KEY}_sha256": hashlib.sha256(told.encode()).hexdigest()}
    later = tmp_path / "later.safetensors"
    save_file(load_file(patch), later, metadata=metadata)
    with pytest.raises(DataError, match="version 2, this program reads version 1"):
        patching.apply(str(later), str(base_folder), tmp_path / "out")


def test_nothing_to_compress(base_folder: Path, tmp_path: Path) -> None:
    same = shutil.copytree(base_folder, tmp_path / "same")
    for expert in (same, base_folder):
        with pytest.raises(DataError, match="is its base"):
            patching.compress(str(expert), str(base_folder), tmp_path / "p.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["same"]


def test_less_than_one_entry(
    base_folder: Path, expert_folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="is less than one"):
        made(tmp_path, expert_folders["math"], base_folder, keep=1e-7)
    # Of each tensor one entry is always kept.
    file = made(tmp_path, expert_folders["math"], base_folder, method="topk_sparse", keep=1e-7)
    assert all((value != 0).sum() == 1 for value in deltas(file).values())


def test_equal_differences_have_no_deviation(tmp_path: Path) -> None:
    base = {"a": torch.zeros(40, 3), "b": torch.zeros(5)}
    for name, add in (("base", 0.0), ("tuned", 0.5)):
        save_file(
            {key: value + add for key, value in base.items()}, tmp_path / f"{name}.safetensors"
        )
    files = str(tmp_path / "tuned.safetensors"), str(tmp_path / "base.safetensors")
    with pytest.raises(DataError, match="standard deviation is 0"):
        patching.compress(*files, tmp_path / "p.safetensors")
    patching.compress(*files, tmp_path / "p.safetensors", method="intq")
    assert all((value == 0.5).all() for value in deltas(tmp_path / "p.safetensors").values())


def test_tensors_that_are_no_floats_are_exact(tmp_path: Path, base_folder: Path) -> None:
    weights = read_weights(base_folder)
    weights |= {
        "ids": torch.arange(9),
        "mask": torch.tensor([True, False]),
        "one": torch.tensor(3.0),
    }
    base = shutil.copytree(base_folder, tmp_path / "base")
    write_weights(base, weights)
    tuned = perturbed(base, tmp_path / "tuned", seed=3, scale=0.02)
    write_weights(tuned, read_weights(tuned) | {"ids": torch.arange(9) * 2})
    file = made(tmp_path, tuned, base, method="topk_sparse", keep=1.0)
    model = resolve(str(file), relative_to=Path())
    assert model.adapter is not None
    assert model.adapter.patch is not None
    rows = model.adapter.patch.rows
    assert (rows["ids"].scheme, rows["mask"].scheme) == ("whole", "same")
    patching.apply(str(file), str(base), tmp_path / "out")
    result = read_weights(tmp_path / "out")
    assert torch.equal(result["ids"], torch.arange(9) * 2)
    assert torch.equal(result["mask"], weights["mask"])
    # Of an fp32 difference, fp16 keeps eleven bits.
    assert result["one"].item() == pytest.approx(read_weights(tuned)["one"].item(), rel=1e-4)


def test_numbers_that_are_not_finite(tmp_path: Path, base_folder: Path) -> None:
    tuned = perturbed(base_folder, tmp_path / "tuned", seed=3, scale=0.02)
    weights = read_weights(tuned)
    weights["model.norm.weight"][2] = float("nan")
    write_weights(tuned, weights)
    for method in ("compeft", "intq"):
        with pytest.raises(DataError, match="1 of 32 entries are NaN") as error:
            made(tmp_path, tuned, base_folder, method=method)
        assert "model.norm.weight" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


def test_places_that_do_not_fit(
    patch: Path, base_folder: Path, expert_folders: dict[str, Path], tmp_path: Path
) -> None:
    pair = str(expert_folders["math"]), str(base_folder)
    before = patch.read_bytes()
    for out, words in (
        (tmp_path / "p.bin", "is a `.safetensors` file"),
        (patch, "is there already"),
        (expert_folders["math"] / "model.safetensors", "is a file of the input"),
    ):
        with pytest.raises(RecipeError, match=words):
            patching.compress(*pair, out)
    assert patch.read_bytes() == before
    patching.compress(*pair, patch, overwrite=True, keep=0.5)
    assert patch.read_bytes() != before


def test_what_is_taken_for_what(patch: Path, base_folder: Path, tmp_path: Path) -> None:
    recipe = {"base": str(base_folder), "steps": ["task_arithmetic"]}
    with pytest.raises(RecipeError, match="is a patch of base, not a model"):
        api.plan({**recipe, "base": str(patch), "experts": {"a": str(base_folder)}})
    with pytest.raises(RecipeError, match="is a patch of base, not a LoRA adapter"):
        api.plan({**recipe, "experts": {"a": {"lora": str(patch)}}})
    with pytest.raises(RecipeError, match="is a model, not a patch"):
        patching.apply(str(base_folder), str(base_folder), tmp_path / "out")
    with pytest.raises(RecipeError, match="is a patch of base, not a model"):
        patching.compress(str(patch), str(base_folder), tmp_path / "q.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(patch, folder)
    with pytest.raises(RecipeError, match="holds a patch") as error:
        api.plan({**recipe, "experts": {"a": str(folder)}})
    assert "p.safetensors" in error.value.problems[0].hint


def test_a_scheme_nobody_knows_is_refused_when_planned(
    patch: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_lite import compress

    monkeypatch.delitem(compress.SCHEMES, "rice")
    with pytest.raises(DataError):
        scheme_named("rice")
    with pytest.raises(RecipeError, match="stores tensors as `rice`"):
        api.plan(
            {
                "base": str(base_folder),
                "experts": {"p": str(patch)},
                "steps": ["task_arithmetic"],
            }
        )


def test_a_lora_of_a_patch_is_that_of_the_applied_model(
    tmp_path: Path, base_folder: Path, expert_folders: dict[str, Path]
) -> None:
    file = made(tmp_path, expert_folders["math"], base_folder, method="svd", rank=3)
    patching.apply(str(file), str(base_folder), tmp_path / "applied", dtype="float32")
    for name, model in (("one", file), ("other", tmp_path / "applied")):
        api.extract_lora(str(model), str(base_folder), tmp_path / name, rank=3, exact=True)
    one, other = read_weights(tmp_path / "one"), read_weights(tmp_path / "other")
    assert one.keys() == other.keys()
    for key, value in one.items():
        if key.endswith("lora_B.weight"):
            pair = [w[key] @ w[key.replace("lora_B", "lora_A")] for w in (one, other)]
            assert torch.allclose(*pair, atol=1e-5)
        elif "lora_A" not in key:
            assert torch.allclose(value, other[key], atol=1e-6)


def test_a_full_disk_leaves_nothing(
    tmp_path: Path,
    base_folder: Path,
    expert_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: Spool, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Spool, "add", full)
    with pytest.raises(OSError, match="No space left"):
        made(tmp_path, expert_folders["math"], base_folder)
    assert list(tmp_path.iterdir()) == []
