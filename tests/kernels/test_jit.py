"""How kernels are called, where compiled ones are kept, and that they can be turned off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mergekit_lite import kernels
from mergekit_lite.folders import cache_folder
from mergekit_lite.kernels import _jit, order
from mergekit_lite.kernels._jit import KERNELS, Kernel, find, kernel_folder
from mergekit_lite.kernels.chain_ranks import Ranked, scan_for
from tests.engine.processes import environment

FOLDER = Path(_jit.__file__).parent
HEAVY = "sorted({'numba', 'torch', 'scipy'} & set(sys.modules))"


def printed_by(code: str, *words: object, cwd: Path = FOLDER.parents[1], **more: str) -> str:
    """Return what a fresh process prints that has the kernels of this one."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**environment(kernel_folder().parents[1]), **more},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_folder_lies_in_the_cache(tmp_path: Path) -> None:
    ask = "from mergekit_lite.kernels._jit import kernel_folder; print(kernel_folder())"
    folder = Path(printed_by(ask, MERGEKIT_LITE_CACHE=str(tmp_path)))
    assert folder == tmp_path / "kernels" / kernel_folder().name


@pytest.mark.parametrize("change", ["source", "numba", "cpu", "nothing"])
def test_another_source_compiler_or_cpu_has_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    for source in FOLDER.glob("*.py"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(_jit, "__file__", str(tmp_path / "_jit.py"))
    ask: Callable[[], Path] = kernel_folder.__wrapped__
    before = ask()
    assert before == cache_folder("kernels") / kernel_folder().name
    if change == "source":
        with (tmp_path / "steps.py").open("a") as file:
            file.write("# another comment\n")
    elif change == "numba":
        monkeypatch.setattr(_jit, "version", lambda name: "0.1")
    elif change == "cpu":
        monkeypatch.setattr("llvmlite.binding.get_host_cpu_name", lambda: "486")
    else:  # which a checkout or an installation changes
        os.utime(tmp_path / "steps.py", ns=(1, 1))
    assert (ask() != before) == (change != "nothing")


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False), ("", True)])
def test_they_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, value: str, on: bool) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", value)
    assert kernels.enabled() is on


def test_a_kernel_that_is_compiled_is_called_without_the_compiler() -> None:
    ask = (
        "import sys, numpy as np; from mergekit_lite.kernels.order import nth_equal;"
        "found = np.zeros(2, np.int64); nth_equal(np.ones(9, np.uint32), 9, 1, 4, found);"
        f"print(found.tolist(), {HEAVY})"
    )
    assert printed_by(ask) == "[3, 4] []"


def test_a_run_needs_neither_the_compiler_nor_torch(
    tmp_path: Path, base_folder: Path, expert_folders: dict[str, Path]
) -> None:
    recipe = {
        "base": str(base_folder),
        "experts": {name: {"model": str(expert_folders[name])} for name in ("math", "code")},
        "steps": [{"ties": {"density": 0.3}}],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    ask = (
        "import sys; from mergekit_lite.cli.main import main\n"
        "try:\n    main(['run', 'recipe.yaml', '-o', 'out'])\n"
        "except SystemExit as ended:\n    assert not ended.code\n"
        f"print({HEAVY}, 'mergekit_lite.kernels.tile' in sys.modules)"
    )
    said = printed_by(ask, cwd=tmp_path)
    assert said.splitlines()[-1] == "[] True"
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_arguments_may_be_given_in_parts() -> None:
    """What is given first is bound by reference: the later call sees its changes."""
    values, found = np.array([7, 7, 7], np.uint32), np.zeros(2, np.int64)
    for given in range(6):
        values[:] = 7, 7, 7
        call = order.nth_equal.on(*(values, 3, np.uint32(7), 2, found)[:given])
        values[0] = 1
        call(*(values, 3, np.uint32(7), 2, found)[given:])
        assert found.tolist() == [2, 2]
        found[:] = 0


def test_arrays_that_are_given_first_live_as_long_as_the_call() -> None:
    found = np.zeros(2, np.int64)
    call = order.nth_equal.on(np.full(1 << 16, 7, np.uint32))
    np.full(1 << 16, 8, np.uint32)  # would take the memory of the first one, were that free
    call(1 << 16, 7, 1 << 16, found)
    assert found.tolist() == [(1 << 16) - 1, 1 << 16]


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(4, np.int32),
        np.zeros(8, np.uint32)[::2],
        np.zeros((2, 2), np.uint32),
        np.zeros((), np.uint32),
    ],
    ids=["type", "strides", "dimensions", "no dimension"],
)
def test_an_array_of_another_type_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(TypeError, match="uint32 is wanted"):
        order.nth_equal(wrong, 4, 7, 1, np.zeros(2, np.int64))


@pytest.mark.parametrize("count", [4, 6])
def test_all_arguments_must_be_given_and_no_more(count: int) -> None:
    given = (np.zeros(4, np.uint32), 4, 7, 1, np.zeros(2, np.int64), 8)
    with pytest.raises(ValueError, match="zip"):
        order.nth_equal.on(*given[:3])(*given[3:count])


def test_a_large_number_keeps_all_its_bits() -> None:
    found = np.zeros(2, np.int64)
    order.nth_equal(np.array([0xFFFFFFFF], np.uint32), 1, 0xFFFFFFFF, 1, found)
    assert found.tolist() == [0, 1]
    order.nth_equal(np.zeros(1, np.uint32), 1, 0, 1 + (1 << 32), found)
    assert found.tolist() == [-1, 1]


def test_every_kernel_is_found_by_its_maker() -> None:
    assert len({kernel.maker for kernel in KERNELS}) == len(KERNELS)
    for kernel in KERNELS:
        assert find(kernel.maker) is kernel


def test_a_kernel_of_a_kind_is_found_by_its_maker() -> None:
    kernel = scan_for(Ranked(0, 1, False, (), 1))
    again = find(tuple(json.loads(json.dumps(kernel.maker))))
    assert isinstance(again, Kernel)
    assert (again.maker, again.file, again.types) == (kernel.maker, kernel.file, kernel.types)
    other = scan_for(Ranked(0, 1, False, (), 2))
    assert other.file != kernel.file
    assert scan_for(Ranked(0, 1, False, (), 1)) is kernel
