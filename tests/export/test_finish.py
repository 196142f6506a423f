"""A folder appears as a whole, with nothing left over."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.engine.options import ExpertReport
from mergekit_lite.errors import RecipeError, ResourceError
from mergekit_lite.export.finish import put_in_place, remove_replaced
from mergekit_lite.export.manifest import report_data
from mergekit_lite.export.target import check_target

from .builders import merged, plan_of, report_of


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_index_lists_every_tensor_sorted(tmp_path: Path, recipe: dict[str, Any]) -> None:
    out = merged(tmp_path / "out", recipe)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    assert index["metadata"]["total_size"] == 2 * index["metadata"]["total_parameters"]
    assert set(index["weight_map"].values()) == {p.name for p in out.glob("*.safetensors")}


def test_one_shard_has_no_index(tmp_path: Path, recipe: dict[str, Any]) -> None:
    out = merged(tmp_path / "out", {**recipe, "output": {}})
    assert "model.safetensors" in names(out)
    assert "model.safetensors.index.json" not in names(out)


def test_fewer_shards_leave_no_old_one(tmp_path: Path, recipe: dict[str, Any]) -> None:
    out = merged(tmp_path / "out", recipe)
    merged(out, {**recipe, "output": {}}, overwrite=True)
    assert [path.name for path in out.glob("*.safetensors*")] == ["model.safetensors"]
    assert {name for name in names(tmp_path) if "out" in name} == {"out"}


def test_leftovers_of_the_working_folder_do_not_travel(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the card cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr("mergekit_lite.export.finish.write_card", fail)
        with pytest.raises(OSError, match="card"):
            merged(tmp_path / "out", recipe)
    partial = tmp_path / "out.partial"
    assert not (tmp_path / "out").exists()
    (partial / "model-00009-of-00009.safetensors").write_bytes(b"stale")
    (partial / "statistics.json").write_text("{}")
    (partial / "folder").mkdir()
    out = merged(tmp_path / "out", recipe)
    assert not names(out) & {"model-00009-of-00009.safetensors", "statistics.json", "folder"}
    assert "journal.jsonl" not in names(out)


def test_old_folder_goes_only_after_the_new_one_stands(tmp_path: Path) -> None:
    work, out = tmp_path / "out.partial", tmp_path / "out"
    for folder, text in ((work, "new"), (out, "old")):
        folder.mkdir()
        (folder / "file").write_text(text)
    with pytest.raises(RecipeError, match="filled during the run"):
        put_in_place(work, out, overwrite=False)
    assert (out / "file").read_text() == "old"
    put_in_place(work, out, overwrite=True)
    assert (out / "file").read_text() == "new"
    assert (tmp_path / ".out.replaced" / "file").read_text() == "old"
    remove_replaced(out)
    assert names(tmp_path) == {"out"}
    assert names(out) == {"file"}


def test_a_run_killed_between_its_last_two_steps_is_ended_by_the_next(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder stands, and its journal is still there."""
    with monkeypatch.context() as patch:
        patch.setattr("mergekit_lite.engine.journal.Journal.remove", lambda journal: None)
        out = merged(tmp_path / "out", recipe)
    before = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    assert "journal.jsonl" in names(out)
    with pytest.raises(RecipeError, match="not empty"):
        merged(out, {**recipe, "seed": 99, "steps": [{"dare_ties": {}}]})
    merged(out, recipe)
    assert "journal.jsonl" not in names(out)
    assert {path.name: path.read_bytes() for path in out.glob("*.safetensors")} == before
    report = json.loads((out / "merge_report.json").read_text())
    assert report["run"]["resumed_shards"] == len(before)
    assert {name for name in names(tmp_path) if "out" in name} == {"out"}


def test_an_empty_folder_may_be_the_target(tmp_path: Path, recipe: dict[str, Any]) -> None:
    (tmp_path / "out").mkdir()
    assert "model.safetensors.index.json" in names(merged(tmp_path / "out", recipe))


def test_targets_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, math = tmp_path / "a" / "base", tmp_path / "a" / "math"
    for folder in (base, math):
        folder.mkdir(parents=True)
    plan = plan_of({}, base=base, math=math)
    file = tmp_path / "file"
    file.write_text("x")
    for out, words in (
        (base, "is the input `base`"),
        (math / "deep" / "er", "inside the input `math`"),
        (tmp_path / "a", "lies inside the output"),
        (file, "is a file"),
        (file / "below", "is a file"),
    ):
        with pytest.raises(RecipeError, match=words):
            check_target(plan, out, overwrite=True)
    check_target(plan, tmp_path / "fresh" / "out")
    link = tmp_path / "link"
    link.symlink_to(base)
    with pytest.raises(RecipeError, match="is the input"):
        check_target(plan, link, overwrite=True)
    monkeypatch.setattr("mergekit_lite.export.target.os.access", lambda *_: False)
    with pytest.raises(ResourceError, match="cannot write"):
        check_target(plan, tmp_path / "fresh" / "out")


def test_a_folder_that_no_run_left_is_not_touched(tmp_path: Path) -> None:
    plan, work = plan_of({}, base=tmp_path / "base"), tmp_path / "out.partial"
    work.mkdir()
    check_target(plan, tmp_path / "out")
    (work / "diary.txt").write_text("mine")
    with pytest.raises(RecipeError, match="not an unfinished run"):
        check_target(plan, tmp_path / "out")
    check_target(plan, tmp_path / "out", fresh=True)
    (work / "journal.jsonl").write_text("{}")
    check_target(plan, tmp_path / "out")


def test_report_names_an_expert_that_changed_nothing(tmp_path: Path) -> None:
    plan = plan_of({"steps": []}, base=tmp_path, math=tmp_path)
    data = report_data(plan, report_of(math=ExpertReport(3, 3, 0, 0.0)))
    assert data["warnings"] == ["expert `math` does not differ from the base in any of 3 tensors"]
    assert data["output"]["tensors_merged"] == 1
    assert report_data(plan, report_of(math=ExpertReport(3, 3, 1, 0.1)))["warnings"] == []


def test_folders_that_hold_what_the_user_works_with_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, book = tmp_path / "work" / "here", tmp_path / "desk" / "recipes"
    for folder in (here, book):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    monkeypatch.chdir(here)
    plan = replace(plan_of({}, base=tmp_path / "base"), folder=str(book))
    for out, words in (
        (here, "current folder"),
        (here.parent, "current folder"),
        (book, "folder of the recipe"),
        (book.parent, "folder of the recipe"),
        (Path.home(), "home folder"),
        (Path("/"), "mount point"),
    ):
        with pytest.raises(RecipeError, match=words) as caught:
            check_target(plan, out, overwrite=True)
        assert all(problem.hint for problem in caught.value.problems)
    check_target(plan, here / "out", overwrite=True)


def test_overwrite_replaces_models_alone(tmp_path: Path) -> None:
    plan, out = plan_of({}, base=tmp_path / "base"), tmp_path / "out"
    (out / "chapters").mkdir(parents=True)
    (out / "chapters" / "one.txt").write_text("mine")
    with pytest.raises(
        RecipeError, match=r"would delete `chapters/one.txt`.*not look like a model"
    ):
        check_target(plan, out, overwrite=True)
    for name in ("recipe.lock.yaml", "config.json", "model.safetensors"):
        (out / name).write_text("")
        check_target(plan, out, overwrite=True)
        (out / name).unlink()
    (out / "model.safetensors").write_text("")
    (out / "journal.jsonl").write_text("")
    with pytest.raises(RecipeError, match="unfinished run"):
        check_target(plan, out, overwrite=True)


@pytest.mark.parametrize("folder", ["", "/home/me/my models/", "../r/", "C:\\r\\"])
def test_report_names_no_folder_of_a_recipe(tmp_path: Path, folder: str) -> None:
    said = (f"{folder}x.yaml:3:9: `a/b:1:2: ` is odd", "--set a=./b/c: odd", "`a/b` is odd")
    plan = replace(plan_of({"steps": []}, base=tmp_path), warnings=said)
    assert report_data(plan, report_of())["warnings"] == [
        "x.yaml:3:9: `a/b:1:2: ` is odd",
        *said[1:],
    ]
