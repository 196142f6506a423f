"""Where compiled kernels are kept, and that they can be turned off."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from mergekit_lite import kernels
from mergekit_lite.kernels import _jit

FOLDER = Path(_jit.__file__).parent
ASK = "import numba, mergekit_lite.kernels._jit; print(numba.config.CACHE_DIR)"


def cache_folder(**environment: str) -> Path:
    """Return the folder that a fresh process keeps compiled kernels in."""
    kept = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**kept, **environment},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(done.stdout.strip())


def test_the_folder_is_named_by_the_source_of_all_kernels(tmp_path: Path) -> None:
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(FOLDER.glob("*.py")):
        digest.update(source.read_bytes())
    folder = cache_folder(XDG_CACHE_HOME=str(tmp_path))
    assert folder == tmp_path / "mergekit-lite" / "kernels" / digest.hexdigest()[:16]


def test_a_folder_that_the_user_chose_stays(tmp_path: Path) -> None:
    assert cache_folder(NUMBA_CACHE_DIR=str(tmp_path / "mine")) == tmp_path / "mine"


def test_another_source_text_has_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in FOLDER.glob("*.py"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(_jit, "__file__", str(tmp_path / "_jit.py"))
    before = _jit._kernel_folder()
    assert before == _jit._kernel_folder()
    with (tmp_path / "steps.py").open("a") as file:
        file.write("# another comment\n")
    assert _jit._kernel_folder() != before


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False), ("", True)])
def test_they_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, value: str, on: bool) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", value)
    assert kernels.enabled() is on
