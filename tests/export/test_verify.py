"""`verify` sees whatever has happened to a merge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergekit_lite.errors import SourceError
from mergekit_lite.export.verify import MissingInput, verify

from .builders import merged


@pytest.fixture
def out(tmp_path: Path, recipe: dict[str, Any]) -> Path:
    return merged(tmp_path / "out", recipe)


def test_a_fresh_merge_is_sound(out: Path) -> None:
    assert len(list(out.glob("*.safetensors"))) > 1
    assert verify(out) == []
    assert verify(out, inputs=True) == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def first(out: Path) -> Path:
    return min(out.glob("*.safetensors"))


def edit_index(out: Path) -> None:
    path = out / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].popitem()
    index["metadata"]["total_size"] += 1
    path.write_text(json.dumps(index))


def edit_report(out: Path, part: str) -> None:
    path = out / "merge_report.json"
    report = json.loads(path.read_text())
    report[part].popitem()
    path.write_text(json.dumps(report))


def edit_config(out: Path) -> None:
    """Change the config and its entry in the lock alike: only the tensors can contradict it."""
    path = out / "config.json"
    path.write_text(path.read_text().replace("bfloat16", "float32"))
    lock = yaml.safe_load((out / "recipe.lock.yaml").read_text())
    import hashlib

    data = path.read_bytes()
    lock["outputs"]["config.json"] = {
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (out / "recipe.lock.yaml").write_text(yaml.safe_dump(lock))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out: flip(first(out)), ["sha256 is"]),
        (lambda out: first(out).unlink(), ["cannot be read"]),
        (lambda out: first(out).write_bytes(b"short"), ["has 5 bytes"]),
        (lambda out: shutil.copy(first(out), out / "stray.safetensors"), ["did not write"]),
        (lambda out: (out / "adapter_model.bin").write_bytes(b"x"), ["did not write"]),
        (lambda out: (out / "model.safetensors.index.json").unlink(), ["cannot be read"]),
        (edit_index, ["bytes, the lock says", "is not in the index", "total_size"]),
        (lambda out: flip(out / "model.safetensors.index.json"), ["sha256 is", "JSON"]),
        (lambda out: edit_report(out, "output"), ["is not the report"]),
        (lambda out: (out / "merge_report.json").write_text("[]"), ["is no report"]),
        (lambda out: (out / "merge_report.json").unlink(), ["cannot be read"]),
        (edit_config, ["names the dtype float32"]),
        (lambda out: (out / "chat_template.jinja").unlink(), ["cannot be read"]),
    ],
)
def test_damage_is_seen(out: Path, damage: Callable[[Path], object], words: list[str]) -> None:
    damage(out)
    problems = verify(out)
    assert [word in str(problem) for word, problem in zip(words, problems, strict=True)] == [
        True
    ] * len(words)


def test_an_index_that_no_lock_speaks_of_is_missed_all_the_same(out: Path) -> None:
    (out / "model.safetensors.index.json").unlink()
    lock = yaml.safe_load((out / "recipe.lock.yaml").read_text())
    del lock["outputs"]["model.safetensors.index.json"], lock["report"]
    (out / "recipe.lock.yaml").write_text(yaml.safe_dump(lock))
    (problem,) = verify(out)
    assert problem.what.startswith("missing, and there are")


def test_the_lock_names_every_file_but_itself_the_card_and_the_report(out: Path) -> None:
    lock = yaml.safe_load((out / "recipe.lock.yaml").read_text())
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files - lock["outputs"].keys() == {
        "recipe.lock.yaml",
        "README.md",
        "merge_report.json",
    }
    assert list(lock["outputs"]) == sorted(lock["outputs"])
    assert lock["report"]["file"] == "merge_report.json"


def test_the_card_may_be_edited_and_the_times_differ(out: Path) -> None:
    with (out / "README.md").open("a") as card:
        card.write("more\n")
    edit_report(out, "run")
    assert verify(out) == []


def test_inputs_that_are_looked_for_in_the_wrong_place(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "desk").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name, source in (("base", recipe["base"]), ("math", recipe["experts"]["math"]["model"])):
        shutil.copytree(source, tmp_path / "desk" / name)
    monkeypatch.chdir(tmp_path / "desk")
    near = {**recipe, "base": "base", "experts": {"math": {"model": "./math"}}}
    out = merged(tmp_path / "out", near)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert verify(out, inputs=True, relative_to=tmp_path / "desk") == []
    problems = verify(out, inputs=True)
    assert [problem.where for problem in problems] == ["input base", "input math"]
    for problem in problems:
        assert isinstance(problem, MissingInput)
        assert "--relative-to" in problem.hint
        assert str(tmp_path / "elsewhere") in problem.hint
    flip(first(out))
    assert not all(isinstance(problem, MissingInput) for problem in verify(out, inputs=True))


def test_changed_input_is_seen(
    tmp_path: Path, recipe: dict[str, Any], expert_folders: dict[str, Path]
) -> None:
    math = tmp_path / "math"
    shutil.copytree(expert_folders["math"], math)
    changed = {**recipe, "experts": {"math": {"model": str(math)}}}
    out = merged(tmp_path / "out", changed)
    flip(math / "model.safetensors")
    assert verify(out) == []
    (problem,) = verify(out, inputs=True)
    assert problem.where == "input math: model.safetensors"
    shutil.rmtree(math)
    (problem,) = verify(out, inputs=True)
    assert problem.where == "input math"
    assert isinstance(problem, MissingInput)
    assert "--relative-to" not in problem.hint


def test_no_lock(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        verify(tmp_path)
    with pytest.raises(SourceError, match="no such folder"):
        verify(tmp_path / "none")
