"""Kernels compiled ahead of a run, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mergekit_lite.errors import MergekitLiteError
from mergekit_lite.kernels import compiler, dequantise, lora, native, order, sums, tile, warm
from mergekit_lite.kernels._jit import KERNELS, Kernel, kernel_folder
from mergekit_lite.kernels.chain import Kind, kernel_for
from mergekit_lite.kernels.chain_ranks import Ranked, scan_for
from mergekit_lite.kernels.codec import BF16
from mergekit_lite.kernels.combine import MEAN, VOTE
from mergekit_lite.kernels.steps import CUT
from tests.engine.processes import environment

MODULES = {module.__name__.rpartition(".")[2] for module in (tile, order, sums, lora, dequantise)}
GENERAL = [kernel for kernel in KERNELS if kernel.maker[0] in MODULES]
OF_SOME_OPS = {"changes", "fusion", "products", "selection_sums"}
OF_SOME_PROCESSORS = {"sha256"}
OF_PATCHES = {"bits", "rice", "survey"}


def unwritten(*names: str) -> list[Kernel]:
    """Return kernels that nobody has compiled, by names that no module has."""
    return [Kernel(len, (), ("order", name)) for name in names]


def spied(monkeypatch: pytest.MonkeyPatch, folder: Path, before: str = "") -> Path:
    """Let children only note what they are asked for, and leave a file for each; return the note.

    The folder of compiled kernels is an empty one.
    """
    monkeypatch.setattr("mergekit_lite.kernels._jit.kernel_folder", lambda: folder)
    child = (
        f"import json, pathlib, sys\n{before}\nfolder = pathlib.Path({str(folder)!r})\n"
        "(folder / 'log').open('a').write(sys.argv[3] + '\\n')\n"
        "for module, name in json.loads(sys.argv[3]):\n"
        "    (folder / f'{module}.{name}.o').write_text('')"
    )
    monkeypatch.setattr(warm, "_CHILD", child)
    return folder / "log"


def test_the_general_kernels_are_in_these_modules() -> None:
    assert {kernel.maker[0] for kernel in GENERAL} == MODULES
    found = {path.stem for path in Path(warm.__file__).parent.glob("*.py")}
    with_kernels = {
        name for name in found if "\n@kernel(" in Path(warm.__file__).with_stem(name).read_text()
    }
    others = OF_SOME_OPS | OF_SOME_PROCESSORS | OF_PATCHES
    assert MODULES <= with_kernels <= MODULES | others


def test_a_kernel_is_missing_until_its_file_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spied(monkeypatch, tmp_path)
    one, two, three = unwritten("one", "two", "three")
    (tmp_path / "order.two.o").write_text("")
    assert not one.is_compiled
    assert two.is_compiled
    assert warm.missing([three, two, one]) == [three, one]


@pytest.mark.parametrize(
    ("together", "wanted"),
    [(True, [["one", "three"], ["two"]]), (False, [["one", "two", "three"]])],
)
def test_two_processes_share_the_work_unless_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, together: bool, wanted: list[list[str]]
) -> None:
    log = spied(monkeypatch, tmp_path)
    warm.compile_kernels(unwritten("one", "two", "three"), together=together)
    asked = [[name for _, name in json.loads(line)] for line in log.read_text().splitlines()]
    assert sorted(asked) == wanted
    assert warm.missing(unwritten("one", "two", "three")) == []


def test_only_what_is_missing_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = spied(monkeypatch, tmp_path)
    warm.compile_kernels(unwritten("one"))
    warm.compile_kernels(unwritten("one", "two"))
    warm.compile_kernels(unwritten("one", "two"))
    assert log.read_text().splitlines() == ['[["order", "one"]]', '[["order", "two"]]']


def test_nothing_is_started_for_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = spied(monkeypatch, tmp_path)
    warm.compile_kernels([])
    assert not log.exists()


def test_a_kernel_that_is_called_first_is_compiled_then(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = spied(monkeypatch, tmp_path)
    loaded: list[Path] = []

    def load(file: Path) -> int:
        loaded.append(file)
        return 1

    monkeypatch.setattr(native, "load", load)
    for _ in range(2):
        unwritten("late")[0].on()
    assert loaded == [tmp_path / "order.late.o"] * 2
    assert log.read_text() == '[["order", "late"]]\n'


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("raise SystemExit('first line\\nno room for code')", "no room for code"),
        ("raise SystemExit(3)", "it ended with code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "it ended with code -9"),
    ],
)
def test_a_compiler_that_fails_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ending: str, said: str
) -> None:
    spied(monkeypatch, tmp_path, before=ending)
    with pytest.raises(MergekitLiteError, match=f"could not be compiled: {said}") as caught:
        warm.compile_kernels(unwritten("one", "two"))
    assert "MERGEKIT_LITE_JIT=0" in str(caught.value.problems[0].hint)
    assert len(warm.missing(unwritten("one", "two"))) == 2


def test_a_file_that_is_damaged_is_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A power cut may leave an empty file; LLVM would end the process over it."""
    monkeypatch.setattr("mergekit_lite.kernels._jit.kernel_folder", lambda: tmp_path)
    found = np.zeros(2, np.int64)
    whole = order.nth_equal.file.read_bytes()
    for damaged in (b"", b"name\n", whole[:-1], whole[:40] + b"x" + whole[41:]):
        kernel = Kernel(order.nth_equal.function, order.nth_equal.types, order.nth_equal.maker)
        kernel.file.write_bytes(damaged)
        monkeypatch.setattr(
            warm, "compile_kernels", lambda kernels: kernels[0].file.write_bytes(whole)
        )
        kernel(np.array([4, 7, 7], np.uint32), 3, 7, 2, found)
        assert found.tolist() == [2, 2]
        assert kernel.file.read_bytes() == whole


def test_a_disk_that_keeps_nothing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mergekit_lite.kernels._jit.kernel_folder", lambda: tmp_path)
    monkeypatch.setattr(warm, "compile_kernels", lambda kernels: kernels[0].file.write_bytes(b""))
    with pytest.raises(MergekitLiteError, match="is damaged as soon as it is written"):
        unwritten("one")[0]()


def test_the_child_writes_where_the_run_looks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The environment may have changed since the run asked for its folder."""
    kernel = Kernel(order.nth_equal.function, order.nth_equal.types, order.nth_equal.maker)
    folder = tmp_path / kernel_folder().name
    monkeypatch.setattr("mergekit_lite.kernels._jit.kernel_folder", lambda: folder)
    warm.compile_kernels([kernel])
    assert [path.name for path in folder.iterdir()] == ["order.nth_equal.o"]
    other = Kernel(order.nth_equal.function, order.nth_equal.types, order.nth_equal.maker)
    monkeypatch.setattr("mergekit_lite.kernels._jit.kernel_folder", lambda: tmp_path / "other")
    with pytest.raises(MergekitLiteError, match="has been changed since the run began"):
        warm.compile_kernels([other])


def test_a_kernel_that_is_not_there_is_told() -> None:
    with pytest.raises(MergekitLiteError, match="has no attribute 'nothing'"):
        warm.compile_kernels(unwritten("nothing"))


def test_a_kernel_that_needs_memory_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator is numba's, which no run loads."""

    def greedy(values, n):  # type: ignore[no-untyped-def]
        values[0] = np.zeros(n, np.float32).sum()

    with pytest.raises(SystemExit, match=r"order', 'greedy'\) calls .*NRT_"):
        compiler.machine_code(Kernel(greedy, ("f4[::1]", "i8"), ("order", "greedy")))


def test_a_run_that_is_stopped_ends_the_compilers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spied(monkeypatch, tmp_path, before="import time; time.sleep(600)")
    started: list[subprocess.Popen[str]] = []
    start = warm._start

    def stopped(kernels: Sequence[Kernel]) -> subprocess.Popen[str]:
        if started:
            raise KeyboardInterrupt
        started.append(start(kernels))
        return started[0]

    monkeypatch.setattr(warm, "_start", stopped)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        warm.compile_kernels(unwritten("one", "two"))
    assert started[0].returncode is not None
    assert time.monotonic() - began < 300
    assert len(warm.missing(unwritten("one", "two"))) == 2


TIES = Kind(
    codes=(BF16, BF16, BF16), deltas=(False, False), weight_space=False, kinds=((CUT,), (CUT,)),
    combine=VOTE, by_count=False, aggregate=MEAN, zero_plus=True, signed=False, divided=False,
    posts=1, out_code=BF16,
)  # fmt: skip


@pytest.mark.slow
def test_a_fresh_cache_is_filled_once(tmp_path: Path) -> None:
    ask = (
        "import sys, json\n"
        "from mergekit_lite.kernels import dequantise, lora, order, sums, tile, warm\n"
        "from mergekit_lite.kernels._jit import KERNELS, find, kernel_folder\n"
        "wanted = [*KERNELS, *(find(tuple(maker)) for maker in json.loads(sys.argv[1]))]\n"
        "print(len(warm.missing(wanted)), flush=True)\n"
        "warm.compile_kernels(wanted)\n"
        "print(len(warm.missing(wanted)), len(list(kernel_folder().iterdir())))\n"
        "print([kernel.on() is not None for kernel in wanted].count(True))\n"
    )
    more = [kernel_for(TIES), scan_for(Ranked(BF16, BF16, False, (), 1))]
    count = len(GENERAL) + len(more)
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", ask, json.dumps([kernel.maker for kernel in more])],
            env={**environment(tmp_path / "other"), "MERGEKIT_LITE_CACHE": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        said.append(done.stdout.split())
    assert said == [[str(count), "0", str(count), str(count)], ["0", "0", str(count), str(count)]]
    names = {".".join(kernel.maker[:2]) for kernel in (*GENERAL, *more)}
    files = {path.stem.partition("-")[0] for path in tmp_path.glob("kernels/*/*.o")}
    assert files == names
