"""`run`: what it writes, what it prints, what it refuses."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from tests.checkpoints import read_weights

from .conftest import Call


def test_writes_the_merge_and_prints_the_folder(
    call: Call, recipe: Path, tmp_path: Path, base_folder: Path, expert_folders: dict[str, Path]
) -> None:
    out = tmp_path / "out"
    result = call("run", recipe, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{out}\n"
    assert "mergekit-lite verify" in result.stderr
    base, math, code = (
        read_weights(folder)
        for folder in (base_folder, expert_folders["math"], expert_folders["code"])
    )
    merged = read_weights(out)
    assert merged.keys() == base.keys()
    for name, value in merged.items():
        origin = base[name].float()
        delta = 0.5 * (math[name].float() - origin) + 0.5 * (code[name].float() - origin)
        wanted = (origin + delta * torch.tensor(0.8)).to(value.dtype)
        assert torch.equal(value, wanted), name
    assert not out.with_name("out.partial").exists()
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())
    assert not (out / "journal.jsonl").exists()
    assert call("verify", out).exit_code == 0


def test_json_report_on_stdout(call: Call, recipe: Path, tmp_path: Path) -> None:
    result = call("run", recipe, "-o", tmp_path / "out", "--json", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert report["inputs"]["math"]["tensors_matched"] == report["output"]["tensors"]
    assert report["inputs"]["math"]["delta_norm"] > 0


def test_set_and_shard_size_change_the_recipe(call: Call, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--set", "output.dtype=float32", "--shard-size", "40kB")
    assert call("run", recipe, "-o", out, *words).exit_code == 0
    assert {value.dtype for value in read_weights(out).values()} == {torch.float32}
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert len(list(out.glob("*.safetensors"))) == 3
    assert (out / "model.safetensors.index.json").is_file()
    assert call("verify", out).exit_code == 0


def test_dry_run_writes_nothing(call: Call, recipe: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = call("run", recipe, "--dry-run", "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert "memory" in result.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_needs_a_folder(call: Call, recipe: Path) -> None:
    result = call("run", recipe)
    assert result.exit_code == 2
    assert "-o/--out" in result.stderr


def test_refuses_a_folder_with_files(call: Call, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model-00009-of-00009.safetensors").write_bytes(b"old")
    result = call("run", recipe, "-o", out)
    assert result.exit_code == 2
    assert "--overwrite" in result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["model-00009-of-00009.safetensors"]
    assert call("run", recipe, "-o", out, "--overwrite").exit_code == 0
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == ["out"]


def test_refuses_an_input_as_output(
    call: Call, recipe: Path, expert_folders: dict[str, Path]
) -> None:
    math = expert_folders["math"]
    before = {path: path.stat().st_mtime_ns for path in math.rglob("*")}
    for out in (math, math / "inside", math.parent):
        result = call("run", recipe, "-o", out, "--overwrite")
        assert result.exit_code == 2, out
        assert "the input `math`" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in math.rglob("*")} == before


def test_read_only_place(
    call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access
    denied = tmp_path.resolve()

    def access(path: str | Path, mode: int, **rest: bool) -> bool:
        return Path(path) != denied and real(path, mode, **rest)

    monkeypatch.setattr("mergekit_lite.export.target.os.access", access)
    result = call("run", recipe, "-o", tmp_path / "out")
    assert result.exit_code == 4
    assert "cannot write" in result.stderr
    assert not (tmp_path / "out.partial").exists()


def test_another_unfinished_run_is_in_the_way(call: Call, recipe: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "journal.jsonl").write_text('{"plan": "another"}\n')
    result = call("run", recipe, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "--fresh" in result.stderr
    assert call("run", recipe, "-o", tmp_path / "out", "--fresh").exit_code == 0
    assert not partial.exists()


def test_takes_up_an_unfinished_run(
    call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    words = ("--shard-size", "15kB", "--threads", "1")
    assert call("run", recipe, "-o", whole, *words).exit_code == 0

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mergekit_lite.export.merge.finish", stop)
        result = call("run", recipe, "-o", out, *words)
    assert result.exit_code == 130
    assert "run the same command again to resume" in result.stderr
    assert not out.exists()
    shards = sorted((tmp_path / "out.partial").glob("*.safetensors"))
    shards[1].unlink()
    result = call("run", recipe, "-o", out, *words)
    assert result.exit_code == 0, result.stderr
    assert f"{len(shards) - 1} of {len(shards)} shards were done and are intact" in result.stderr
    for file in whole.iterdir():
        if file.name not in ("merge_report.json", "README.md"):
            assert file.read_bytes() == (out / file.name).read_bytes(), file.name
    assert sorted(f.name for f in whole.iterdir()) == sorted(f.name for f in out.iterdir())


def test_not_enough_memory_is_said_before_anything(
    call: Call, recipe: Path, tmp_path: Path
) -> None:
    result = call("run", recipe, "-o", tmp_path / "out", "--max-memory", "1MB")
    assert result.exit_code == 4
    assert "--max-memory" in result.stderr
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--max-memory", "2XB"), "5GB"),
        (("--threads", "0"), "x>=1"),
        (("--device", "tpu"), "cuda"),
        (("--set", "nonsense"), "path=value"),
        (("--set", "steps.0.task_arithmetic.lamda=1"), "lambda"),
    ],
)
def test_bad_options(
    call: Call, recipe: Path, tmp_path: Path, words: tuple[str, ...], hint: str
) -> None:
    result = call("run", recipe, "-o", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert hint in result.stderr
    assert not (tmp_path / "out").exists()


def test_progress_as_json(call: Call, recipe: Path, tmp_path: Path) -> None:
    result = call("run", recipe, "-o", tmp_path / "out", "--log-format", "json")
    assert result.exit_code == 0
    kinds = [json.loads(line)["event"] for line in result.stderr.splitlines()]
    assert kinds[0] == "start"
    assert "done" in kinds


def test_missing_recipe(call: Call, tmp_path: Path) -> None:
    result = call("run", tmp_path / "absent.yaml", "-o", tmp_path / "out")
    assert result.exit_code in (2, 5)
    assert "absent.yaml" in result.stderr


def test_what_to_do_next_can_be_pasted(
    call: Call,
    base_folder: Path,
    expert_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recipe lies elsewhere, and the names have spaces."""
    desk = tmp_path / "my desk"
    desk.mkdir()
    shutil.copytree(base_folder, desk / "the base")
    shutil.copytree(expert_folders["math"], desk / "math")
    (desk / "recipe.yaml").write_text(
        "base: ./the base\nexperts: {math: {model: math}}\nsteps: [{take: {source: math}}]\n"
    )
    for here, base in ((tmp_path, "my desk/the base"), (base_folder, str(desk / "the base"))):
        monkeypatch.chdir(here)
        out = tmp_path / f"an out of {here.name}"
        result = call("run", desk / "recipe.yaml", "-o", out)
        assert result.exit_code == 0, result.stderr
        verify, diff = (shlex.split(line) for line in result.stderr.splitlines()[-2:])
        assert verify[1:] == ["mergekit-lite", "verify", str(out)]
        assert diff == ["mergekit-lite", "diff", base, str(out)]
        assert call(*verify[2:]).exit_code == 0, verify
        assert call(*diff[1:]).exit_code == 0


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (("--log-format", "json", "--max-memory", "1MB"), 4, "memory"),
        (("--log-format=json", "--nonsense"), 2, "--nonsense"),
        (("--log-format=json", "--threads", "0"), 2, "x>=1"),
        (("--log-format=json", "--set", "steps.0.task_arithmetic.lamda=1"), 2, "lamda"),
    ],
)
def test_errors_as_json(
    call: Call, recipe: Path, tmp_path: Path, words: tuple[str, ...], code: int, what: str
) -> None:
    result = call("run", recipe, "-o", tmp_path / "out", *words)
    assert result.exit_code == code
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    (error,) = (line for line in lines if line["event"] == "error")
    assert error.keys() == {"ts", "event", "what", "where", "hint", "exit_code"}
    assert what in error["what"]
    assert error["hint"]
    assert error["exit_code"] == code


def test_a_home_folder_that_no_shell_has_expanded(
    call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    result = call("run", recipe, "-o", "~/out", "--json", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["output"]["dtype"] == ["BF16"]
    assert (tmp_path / "out" / "config.json").is_file()
