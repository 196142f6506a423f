"""The Python interface, of which the command line is a thin caller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mergekit_lite
from mergekit_lite.engine.events import Event
from mergekit_lite.errors import RecipeError

from .conftest import Call

SAME = {"merge_report.json", "README.md"}
"""Files that name the time a run took, or the folder."""


def same_files(left: Path, right: Path) -> bool:
    names = {path.name for path in left.iterdir()} - SAME
    assert names == {path.name for path in right.iterdir()} - SAME
    return all((left / name).read_bytes() == (right / name).read_bytes() for name in names)


def test_command_line_and_python_write_the_same_bytes(
    call: Call, recipe: Path, tmp_path: Path
) -> None:
    assert call("run", recipe, "-o", tmp_path / "cli").exit_code == 0
    loaded = mergekit_lite.load(recipe)
    events: list[Event] = []
    report = mergekit_lite.run(loaded, tmp_path / "api", emit=events.append)
    assert same_files(tmp_path / "cli", tmp_path / "api")
    assert events[-1].kind == "done"
    assert report.inputs["math"].matched == 20
    mergekit_lite.run(mergekit_lite.plan(recipe), tmp_path / "plan")
    assert same_files(tmp_path / "cli", tmp_path / "plan")


def test_load_applies_changes(recipe: Path) -> None:
    assert mergekit_lite.load(recipe, set=["seed=7"]).seed == 7
    assert mergekit_lite.load(str(recipe)).seed == 0


def test_unknown_run_option(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="treads"):
        mergekit_lite.run(recipe, tmp_path / "out", treads=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, ["`device` is 'tpu'", "`cpu`, `cuda`, `auto`"]),
        ({"threads": 0}, ["`threads` is 0", "at least 1"]),
        ({"threads": True}, ["`threads` is True"]),
        ({"max_memory": "2GB"}, ["`max_memory` is '2GB'", "bytes", "int"]),
        ({"max_memory": 0}, ["`max_memory` is 0"]),
        ({"max_memory": 2e9}, ["`max_memory` is 2000000000.0"]),
        ({"executor": None}, ["`executor` is None"]),
        ({"executor": "lokal"}, ["unknown executor `lokal`", "`local`"]),
        ({"threads": -1, "device": "mps"}, ["`threads` is -1", "`device` is 'mps'"]),
    ],
)
def test_run_options_that_do_not_fit_are_refused_before_anything_is_written(
    recipe: Path, tmp_path: Path, options: dict[str, Any], words: list[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RecipeError) as caught:
        mergekit_lite.run(recipe, tmp_path / "out", **options)
    for text in words:
        assert text in str(caught.value)
    assert "--" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_no_folder_to_make_is_refused(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="current folder"):
        mergekit_lite.run(recipe, "")


def test_merge_tensors() -> None:
    deltas = [torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])]
    merged = mergekit_lite.merge_tensors("task_arithmetic", deltas, lambda_=0.5)
    assert merged.tolist() == [2.0, 1.0]
    base = torch.tensor([10.0, 10.0])
    assert mergekit_lite.merge_tensors("linear", deltas, base=base).tolist() == [12.0, 11.0]
    with pytest.raises(RecipeError, match="did you mean `ties`"):
        mergekit_lite.merge_tensors("tise", deltas)


def test_everything_exported_is_there() -> None:
    for name in mergekit_lite.__all__:
        assert getattr(mergekit_lite, name) is not None
