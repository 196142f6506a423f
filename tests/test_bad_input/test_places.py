"""Where the output may not go, and disks that cannot take it."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.export import target

from .conftest import LINEAR, World


def _refused(
    world: World, out: Path, code: int, *expected: str, words: tuple[str, ...] = ()
) -> None:
    path = world.write(LINEAR)
    before = world.files()
    world.said(world.call("run", path, "-o", out, *words), code, *expected)
    world.said(world.call("run", path, "-o", out, "--dry-run", *words), code, *expected)
    world.untouched(before)


def test_folder_with_files(world: World) -> None:
    world.out.mkdir()
    (world.out / "model.safetensors").write_bytes(b"old")
    _refused(world, world.out, 2, str(world.out), "not empty", "--overwrite")


def test_folder_with_files_is_replaced_on_demand(world: World) -> None:
    world.out.mkdir()
    (world.out / "model-00001-of-00009.safetensors").write_bytes(b"old")
    assert world.run(LINEAR, "--overwrite").exit_code == 0
    assert [file.name for file in world.out.glob("*.safetensors")] == ["model.safetensors"]


def test_folder_that_is_no_model_is_never_replaced(world: World) -> None:
    world.out.mkdir()
    (world.out / "thesis.txt").write_text("mine")
    _refused(world, world.out, 2, "would delete `thesis.txt`", words=("--overwrite",))


@pytest.mark.parametrize("out", [".", "..", "sub", "/"])
def test_folders_of_the_user(world: World, out: str) -> None:
    """The current folder, that of the recipe, what holds them, the root."""
    recipes = world.folder / "sub" / "recipes"
    recipes.mkdir(parents=True)
    models = {name: f"{getattr(world, name)}" for name in ("base", "math", "code")}
    text = LINEAR.replace("base: base", f"base: {models['base']}")
    for name in ("math", "code"):
        text = text.replace(f"model: {name}", f"model: {models[name]}")
    (recipes / "mine.yaml").write_text(text)
    before = world.files()
    result = world.call("run", recipes / "mine.yaml", "-o", out, "--overwrite")
    world.said(result, 2, "folder", "name a folder")
    world.untouched(before)


def test_folder_without_a_name(world: World) -> None:
    path = world.write(LINEAR)
    before = world.files()
    world.said(world.call("run", path, "-o", "", "--overwrite"), 2, "-o", "name a folder")
    world.untouched(before)


def test_file_in_the_place_of_the_folder(world: World) -> None:
    world.out.write_text("mine")
    _refused(world, world.out, 2, str(world.out), "is a file", words=("--overwrite",))


@pytest.mark.parametrize("name", ["base", "math", "./code"])
def test_output_that_is_an_input(world: World, name: str) -> None:
    label = name.removeprefix("./")
    out = world.folder / name
    _refused(world, out, 2, f"is the input `{label}`", "apart", words=("--overwrite",))


def test_output_that_is_a_link_to_an_input(world: World) -> None:
    os.symlink("math", world.out)
    _refused(world, world.out, 2, "is the input `math`", words=("--overwrite",))


def test_output_inside_an_input(world: World) -> None:
    _refused(world, world.math / "merged" / "out", 2, "inside the input `math`", "apart")


def test_input_inside_the_output(world: World) -> None:
    _refused(world, world.folder, 2, "inside the output folder", words=("--overwrite",))


def test_parent_that_is_a_file(world: World) -> None:
    """A place that nobody can write to, root included."""
    out = world.base / "config.json" / "out"
    path = world.write(LINEAR)
    before = world.files()
    result = world.call("run", path, "-o", out)
    world.said(result, 2, str(out))
    world.untouched(before)
    # `config.json` of an input is refused as a part of it; this file is nobody's.
    (world.folder / "notes").write_text("mine")
    _refused(world, world.folder / "notes" / "out", 2, "is a file, not a folder", "another folder")


def test_read_only_folder(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """`access` is replaced, because root may write to a folder that is read-only."""
    place = world.folder / "shelf"
    place.mkdir(mode=0o555)
    real = os.access

    def access(path: Any, mode: int, **more: Any) -> bool:
        return Path(path) != place and real(path, mode, **more)

    monkeypatch.setattr(target.os, "access", access)
    _refused(world, place / "out", 4, f"cannot write in `{place}`", "writable")


def test_read_only_file_system(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mkdir` is replaced: a file system that is read-only, which `access` did not tell."""
    path = world.write(LINEAR)
    before = world.files()

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = world.call("run", path, "-o", world.out)
    monkeypatch.undo()
    world.said(result, 4, str(world.folder), "read-only", "choose another folder")
    world.untouched(before)


def test_foreign_folder_in_the_place_of_the_work(world: World) -> None:
    work = world.folder / "out.partial"
    work.mkdir()
    (work / "thesis.txt").write_text("mine")
    _refused(world, world.out, 2, "out.partial", "not an unfinished run", "--fresh")


def test_leftovers_of_another_recipe(world: World) -> None:
    work = world.folder / "out.partial"
    work.mkdir()
    (work / "journal.jsonl").write_text('{"plan": "another"}\n')
    path = world.write(LINEAR)
    before = world.files()
    result = world.call("run", path, "-o", world.out)
    world.said(result, 2, "out.partial", "another recipe or shard size", "--fresh")
    world.untouched(before)
    assert world.run(LINEAR, "--fresh").exit_code == 0
    assert not work.exists()


def test_disk_too_small_for_the_plan(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = (10**6, 10**6 - 100, 100)
    monkeypatch.setattr("mergekit_lite.plan.estimate.free_at", lambda out: usage[2])
    path = world.write(LINEAR)
    before = world.files()
    result = world.call("run", path, "-o", world.out)
    world.said(result, 4, str(world.out), "of disk", "100 bytes are free", "free some space")
    world.untouched(before)


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full_in_mid_run(world: World, call: str, code: int) -> None:
    words = ("--shard-size", "20kB", "--threads", "1")
    assert world.run(LINEAR, *words).exit_code == 0
    whole = {file.name: file.read_bytes() for file in world.out.glob("model*")}
    world.out.rename(world.folder / "whole")
    before = world.files()
    real = getattr(os, call)

    def full(descriptor: int, *args: Any) -> Any:
        if "00003-of-00003" in os.readlink(f"/proc/self/fd/{descriptor}"):
            _wait_for_a_finished_shard(world)
            raise OSError(code, os.strerror(code))
        return real(descriptor, *args)

    with world.patch.context() as patch:
        patch.setattr(os, call, full)
        result = world.run(LINEAR, *words)
    world.said(result, 4, "out.partial", "no space left", "run the same command again to resume")
    assert not world.out.exists()
    new = {path for path in world.files() if path not in before}
    assert {path.split("/")[0] for path in new} == {"out.partial"}
    result = world.run(LINEAR, *words)
    assert result.exit_code == 0, result.stderr
    assert "shards were done and are intact" in result.stderr
    assert {file.name: file.read_bytes() for file in world.out.glob("model*")} == whole
    assert not (world.folder / "out.partial").exists()


def _wait_for_a_finished_shard(world: World) -> None:
    journal = world.folder / "out.partial" / "journal.jsonl"
    until = time.monotonic() + 120
    while len(journal.read_text().splitlines()) < 2 and time.monotonic() < until:
        time.sleep(0.01)


def test_disk_full_when_the_card_is_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "README.md")

    with monkeypatch.context() as patch:
        patch.setattr("mergekit_lite.export.finish.write_card", full)
        result = world.run()
    world.said(result, 4, "README.md", "again to resume")
    assert not world.out.exists()
    result = world.run()
    assert result.exit_code == 0, result.stderr
    assert "1 of 1 shards were done and are intact" in result.stderr


def test_too_little_memory(world: World) -> None:
    world.refused(4, "of memory", "--max-memory", words=("--max-memory", "1MB"))
