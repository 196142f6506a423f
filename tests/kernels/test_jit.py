"""Where compiled kernels are kept, and that they can be turned off."""

from __future__ import annotations

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


def test_the_folder_lies_in_the_cache(tmp_path: Path) -> None:
    folder = cache_folder(MERGEKIT_LITE_CACHE=str(tmp_path))
    assert folder.parent == tmp_path / "kernels"
    assert folder.name == _jit._kernel_folder().name


def test_a_folder_that_the_user_chose_stays(tmp_path: Path) -> None:
    assert cache_folder(NUMBA_CACHE_DIR=str(tmp_path / "mine")) == tmp_path / "mine"


@pytest.mark.parametrize("change", ["text", "time"])
def test_another_source_has_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    for source in FOLDER.glob("*.py"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(_jit, "__file__", str(tmp_path / "_jit.py"))
    before = _jit._kernel_folder()
    assert before == _jit._kernel_folder()
    if change == "text":
        with (tmp_path / "steps.py").open("a") as file:
            file.write("# another comment\n")
    else:  # numba would compile anew, so what is there is of no use
        os.utime(tmp_path / "steps.py", ns=(1, 1))
    assert _jit._kernel_folder() != before


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False), ("", True)])
def test_they_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, value: str, on: bool) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", value)
    assert kernels.enabled() is on


def test_loading_kernels_leaves_linear_algebra_alone_but_usable() -> None:
    """Kernels need no BLAS, so nothing loads one; a function that does still finds it."""
    ask = (
        "import sys, numpy as np; from mergekit_lite.kernels.order import histogram;"
        "histogram(np.zeros(4, np.uint32), 4, np.zeros(1 << 16, np.int64));"
        "print('scipy.linalg' in sys.modules);"
        "from numba import njit; two = np.eye(2) * 2; print(njit(lambda a: a @ a)(two)[0, 0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask],
        env={**os.environ, "NUMBA_CACHE_DIR": str(numba.config.CACHE_DIR)},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "4.0"]
