"""`store pack`, `store list` and `store materialize`, as a person calls them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from mergekit_lite.cli.store import METHODS
from mergekit_lite.compress.stores import store_methods
from tests.cli.conftest import Call


@pytest.fixture
def words(base_folder: Path, expert_folders: dict[str, Path]) -> list[object]:
    named = [f"{name}={expert_folders[name]}" for name in ("math", "code")]
    return ["store", "pack", "--base", base_folder, "--expert", named[0], "--expert", named[1]]


@pytest.fixture
def store(tmp_path: Path, words: list[object], call: Call) -> Path:
    out = tmp_path / "store.safetensors"
    found = call(*words, "-o", out)
    assert found.exit_code == 0, found.stderr
    assert found.stdout.strip() == str(out)
    assert "times smaller" in found.stderr
    return out


def test_the_choices_are_the_methods() -> None:
    assert list(METHODS) == sorted(store_methods())


def test_list_tells_tasks_sizes_and_errors(store: Path, call: Call) -> None:
    found = call("store", "list", store)
    assert found.exit_code == 0
    assert found.stdout.splitlines()[0].split(maxsplit=1)[1] == "store of 2 fine-tunes of `base`"
    assert "emr (dtype float16)" in found.stdout
    assert found.stdout == call("inspect", store).stdout
    told = json.loads(call("store", "list", store, "--json").stdout)
    assert list(told["tasks"]) == ["math", "code"]
    assert told["file_bytes"] == store.stat().st_size
    own = sum(task["stored"] for task in told["tasks"].values())
    assert own + told["shared"] < told["file_bytes"]
    assert told["ratio"] == pytest.approx(2 * told["dense"] / told["file_bytes"])
    assert "kind" in call("inspect", f"{store}#math").stdout


def test_materialize_and_verify(store: Path, base_folder: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "again"
    found = call("store", "materialize", store, "--task", "math", "--base", base_folder, "-o", out)
    assert found.exit_code == 0, found.stderr
    assert found.stdout.strip() == str(out)
    assert call("verify", out).exit_code == 0


def test_what_is_refused_and_its_exit_codes(
    store: Path,
    words: list[object],
    base_folder: Path,
    expert_folders: dict[str, Path],
    tmp_path: Path,
    call: Call,
) -> None:
    out = tmp_path / "q.safetensors"
    for extra, said in (
        (["--set", "mask_lambda=0.4"], "has no parameter `mask_lambda`"),
        (["--method", "tall_mask", "--set", "mask_lambda=0"], "mask_lambda"),
        (["--set", "dtype"], "is not NAME=VALUE"),
        (["--expert", "math=x"], "`math` is given twice"),
        (["--expert", "third"], "is not NAME=VALUE"),
        (["--method", "zip"], "is not one of"),
        (["recipe.yaml"], "either a recipe, or --base and --expert"),
    ):
        wrong = call(*words, *extra, "-o", out)
        assert wrong.exit_code == 2, extra
        assert said in wrong.stderr
    assert call("store", "pack", "--base", base_folder, "-o", out).exit_code == 2
    assert call("store", "pack", "-o", out).exit_code == 2
    assert call(*words).exit_code == 2
    assert call(*words, "--expert", f"third={tmp_path / 'none'}", "-o", out).exit_code == 5
    task = ["store", "materialize", store, "-o", tmp_path / "again"]
    wrong = call(*task, "--task", "math", "--base", expert_folders["code"])
    assert wrong.exit_code == 2
    assert "is not what the patch was made against" in wrong.stderr
    assert call(*task, "--task", "physics", "--base", base_folder).exit_code == 2
    assert call(*task, "--task", "math").exit_code == 5, "no base of that name is here"
    data = bytearray(store.read_bytes())
    data[-1] ^= 255
    store.write_bytes(data)
    damaged = [call(*task, "--task", name, "--base", base_folder) for name in ("math", "code")]
    assert sorted(result.exit_code for result in damaged)[-1] == 3
    store.write_bytes(data[:-9])
    assert call("store", "list", store).exit_code == 3
    assert not out.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_exit_code_4(
    code: int,
    words: list[object],
    base_folder: Path,
    expert_folders: dict[str, Path],
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Patches and stores alike: no file is there, and nothing is left beside it."""

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("mergekit_lite.checkpoint.writer.ShardWriter.copy_from", full)
    out = tmp_path / "out.safetensors"
    patch = ["compress", expert_folders["math"], "--base", base_folder]
    for verb in (patch, words):
        found = call(*verb, "-o", out)
        assert found.exit_code == 4, found.stderr
        assert "free some space" in found.stderr
        assert list(tmp_path.iterdir()) == []
