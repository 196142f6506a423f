"""A small world of models, and a command line that must refuse it without leaving a trace."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner, Result

from mergekit_lite.checkpoint import FileReader
from mergekit_lite.cli.main import main
from mergekit_lite.export import merge

LINEAR = """\
base: base
experts:
  math: {model: math, weight: 0.5}
  code: {model: code, weight: 0.5}
steps:
  - task_arithmetic: {lambda: 0.8}
"""
"""A sound recipe, which tests make unsound."""


@dataclass(frozen=True)
class World:
    """A folder with the models `base`, `math` and `code`, copies that a test may damage."""

    folder: Path
    patch: pytest.MonkeyPatch

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def math(self) -> Path:
        return self.folder / "math"

    @property
    def code(self) -> Path:
        return self.folder / "code"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def write(self, text: str) -> Path:
        """Write the recipe `recipe.yaml`."""
        path = self.folder / "recipe.yaml"
        path.write_text(text)
        return path

    def call(self, *words: object) -> Result:
        """Call the command line in this process; what it says is shown if the test fails."""
        result = CliRunner().invoke(main, [str(word) for word in words])
        print(result.stderr)
        return result

    def run(self, text: str = LINEAR, *words: object) -> Result:
        """Merge by a recipe of this text into `out`."""
        return self.call("run", self.write(text), "-o", self.out, *words)

    def refused(
        self, code: int, *expected: str, text: str = LINEAR, words: tuple[object, ...] = ()
    ) -> str:
        """Run a recipe that must fail on its text and headers; return the message.

        No weight may be read, no file may be made, changed or removed, and `check` and
        `run --dry-run` must say the same.
        """
        path = self.write(text)
        before = self.files()
        with self.patch.context() as patch:
            patch.setattr(FileReader, "__init__", _no_weight)
            patch.setattr(merge, "input_digests", _no_weight)
            result = self.call("run", path, "-o", self.out, *words)
            dry = self.call("run", path, "-o", self.out, "--dry-run", *words)
        self.said(result, code, *expected)
        assert (dry.exit_code, dry.stderr) == (code, result.stderr)
        self.untouched(before)
        return result.stderr

    def said(self, result: Result, code: int, *expected: str) -> None:
        """Require an exit code and words of a message that is fit for a user."""
        assert result.exit_code == code, result.stderr
        assert result.stdout == ""
        for words in expected:
            assert words in result.stderr
        assert "Traceback" not in result.stderr
        assert "defect" not in result.stderr
        # A message has a remedy under each problem.
        assert "\n    " in result.stderr

    def warned(self, *expected: str, text: str = LINEAR) -> str:
        """Run a recipe that must succeed with a warning; return what was said."""
        result = self.run(text)
        assert result.exit_code == 0, result.stderr
        for words in expected:
            assert words in result.stderr
        assert "warning: " in result.stderr
        assert self.call("verify", self.out).exit_code == 0
        return result.stderr

    def files(self) -> dict[str, object]:
        """Return what tells that any file or folder of the world has changed."""
        paths = sorted(self.folder.rglob("*"))
        return {str(path.relative_to(self.folder)): _state(path) for path in paths}

    def untouched(self, before: dict[str, object]) -> None:
        """Require that no file was made, changed or removed since `before`."""
        after = self.files()
        assert after.keys() == before.keys()
        assert after == before


def _state(path: Path) -> object:
    if path.is_dir():
        return "folder"
    facts = path.lstat()
    # The large files of these tests are holes.
    small = facts.st_size < 1 << 22 and path.is_file()
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if small else ""
    return facts.st_size, facts.st_mtime_ns, facts.st_mode, digest


def _no_weight(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a weight file was opened")


@pytest.fixture
def world(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    base_folder: Path,
    expert_folders: dict[str, Path],
) -> World:
    """The models and an empty place for temporary files, all below one watched folder."""
    folder = tmp_path / "world"
    for name, source in (("base", base_folder), *expert_folders.items()):
        if name != "chat":
            shutil.copytree(source, folder / name)
    (folder / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "temporary"))
    monkeypatch.setenv("TMPDIR", str(folder / "temporary"))
    monkeypatch.setenv("MERGEKIT_LITE_CACHE", str(tmp_path / "cache"))
    # The kernels would be compiled for seconds, and what is tested here happens around them.
    monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    monkeypatch.delenv("MERGEKIT_LITE_DEBUG", raising=False)
    monkeypatch.chdir(folder)
    return World(folder, monkeypatch)
