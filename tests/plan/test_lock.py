"""The lock, and digests that are computed once."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mergekit_lite.errors import DataError, RecipeError, SourceError
from mergekit_lite.plan.build import build, models
from mergekit_lite.plan.digests import DigestCache, cache_file, file_sha256
from mergekit_lite.plan.lock import (
    input_digests,
    lock_inputs,
    lock_outputs,
    lock_text,
    read_lock,
    require_unchanged,
)
from mergekit_lite.plan.types import Plan
from tests.plan.hollow import recipe

RECIPE = (
    "base: base\nexperts: {math: {model: math}, same: {model: ./math}}\nsteps: [linear]\nseed: 3"
)


@pytest.fixture
def made(root: Path) -> Plan:
    return build(recipe(root, RECIPE))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_lock_names_every_input_file_by_size_and_digest(root: Path, made: Plan) -> None:
    lock = lock_inputs(made, input_digests(made))
    file = root / "math" / "model.safetensors"
    assert lock["inputs"]["math"] == {
        "reference": "math",
        "root": "math",
        "kind": "checkpoint",
        "files": {"model.safetensors": {"size": file.stat().st_size, "sha256": sha256(file)}},
    }
    assert (lock["seed"], lock["plan"]) == (3, made.content_digest())
    assert str(root) not in lock_text(lock)


def test_a_lock_survives_its_file(tmp_path: Path, made: Plan) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    digest = sha256(tmp_path / "model.safetensors")
    lock = lock_outputs(
        lock_inputs(made, input_digests(made)), tmp_path, {"model.safetensors": digest}
    )
    (tmp_path / "recipe.lock.yaml").write_text(lock_text(lock))
    assert read_lock(tmp_path / "recipe.lock.yaml") == lock
    assert lock["outputs"] == {"model.safetensors": {"size": 7, "sha256": digest}}


def test_inputs_with_one_root_are_hashed_once(made: Plan) -> None:
    counts: list[int] = []
    digests = input_digests(made, progress=counts.append)
    assert digests["math"] == digests["same"]
    assert sum(counts) == sum(
        made.inputs[name].files["model.safetensors"] for name in ("base", "math")
    )


def test_a_single_file_is_hashed_as_itself(root: Path) -> None:
    text = RECIPE.replace("model: ./math", "model: code/model.safetensors")
    digests = input_digests(build(recipe(root, text)))
    assert digests["same"] == {"model.safetensors": sha256(root / "code" / "model.safetensors")}


class Served:
    """A reader of bytes that lie in no file."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]

    def close(self) -> None:
        self.data = b""


def test_bytes_that_a_source_serves_are_hashed_as_served(root: Path, made: Plan) -> None:
    data = (root / "math" / "model.safetensors").read_bytes()
    found = models(recipe(root, RECIPE))
    (root / "math" / "model.safetensors").write_bytes(b"compressed")
    served = replace(found["math"], open=lambda file: Served(data))
    counts: list[int] = []
    digests = input_digests(
        made, models={**found, "math": served, "same": served}, progress=counts.append
    )
    assert digests["math"] == {"model.safetensors": hashlib.sha256(data).hexdigest()}
    assert digests["base"] == {"model.safetensors": sha256(root / "base" / "model.safetensors")}
    with pytest.raises(DataError, match="the file has 10 bytes"):
        input_digests(made, models=found)


def test_changed_inputs_are_refused(root: Path, made: Plan) -> None:
    before = lock_inputs(made, input_digests(made))
    require_unchanged(before, before)
    file = root / "math" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    after = lock_inputs(made, input_digests(made))
    with pytest.raises(RecipeError, match=r"math: model\.safetensors: sha256 is"):
        require_unchanged(before, after)
    del after["inputs"]["same"]
    with pytest.raises(RecipeError, match="`same` of the lock is not in the recipe"):
        require_unchanged(before, after)


def test_an_input_that_grows_or_goes_is_noticed(root: Path, made: Plan) -> None:
    file = root / "math" / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(DataError, match="when the merge was planned"):
        input_digests(made)
    file.unlink()
    with pytest.raises(SourceError, match="No such file"):
        input_digests(made)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a list", "not a mapping"),
        ("lock_version: 99", "lock_version is 99"),
        ("lock_version: 1", "the lock has no `outputs`"),
        ("{", "not YAML"),
        (
            "{lock_version: 1, recipe: {}, inputs: {}, plan: x, seed: 0, outputs: {a: {size: 1}}}",
            "no size or no sha256 for a",
        ),
    ],
)
def test_damaged_locks(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "lock.yaml").write_text(text)
    with pytest.raises(DataError, match=says):
        read_lock(tmp_path / "lock.yaml")
    with pytest.raises(SourceError):
        read_lock(tmp_path / "none.yaml")


def test_a_second_run_reads_no_file_again(tmp_path: Path, made: Plan) -> None:
    read: list[int] = []
    cache = DigestCache(tmp_path / "cache" / "digests.json")
    first = input_digests(made, cache, progress=read.append)
    cache.save()
    assert read
    read.clear()
    again = DigestCache(tmp_path / "cache" / "digests.json")
    assert input_digests(made, again, progress=read.append) == first
    assert read == []


def test_a_changed_file_is_hashed_again(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    cache = DigestCache(tmp_path / "digests.json")
    assert file_sha256(file, cache) == hashlib.sha256(b"one").hexdigest()
    status = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert file_sha256(file, cache) == hashlib.sha256(b"two").hexdigest()


def test_links_share_the_digest_of_what_they_point_to(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x" * 3_000_000)
    (tmp_path / "link").symlink_to("blob")
    cache, read = DigestCache(tmp_path / "digests.json"), []
    file_sha256(tmp_path / "blob", cache)
    assert file_sha256(tmp_path / "link", cache, read.append) == sha256(tmp_path / "blob")
    assert read == []


@pytest.mark.parametrize("text", ["", "not json", "[1]", '{"a": 1}', '{"a": [1, 2, "x", "y"]}'])
def test_a_damaged_cache_is_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "digests.json").write_text(text)
    (tmp_path / "file").write_bytes(b"abc")
    cache = DigestCache(tmp_path / "digests.json")
    digest = file_sha256(tmp_path / "file", cache)
    cache.save()
    entries = json.loads((tmp_path / "digests.json").read_text())
    assert [entry[-1] for entry in entries.values()] == [digest]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digests.json", "file"]


def test_what_another_process_saved_is_kept(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    one, two = DigestCache(tmp_path / "d.json"), DigestCache(tmp_path / "d.json")
    file_sha256(tmp_path / "a", one)
    file_sha256(tmp_path / "b", two)
    one.save()
    two.save()
    assert len(json.loads((tmp_path / "d.json").read_text())) == 2


def test_the_cache_lies_in_the_users_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MERGEKIT_LITE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file() == tmp_path / "mergekit-lite" / "digests.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_file().parts[-3:] == (".cache", "mergekit-lite", "digests.json")


def test_an_unwritable_cache_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "blocked").write_text("a file where a folder should be")
    cache = DigestCache(tmp_path / "blocked" / "digests.json")
    assert file_sha256(tmp_path / "file", cache) == hashlib.sha256(b"abc").hexdigest()
    cache.save()
