"""Kernels compiled ahead of a run, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numba
import pytest
from numba.core.sigutils import normalize_signature

from mergekit_lite.errors import MergekitLiteError
from mergekit_lite.kernels import lora, order, sums, tile, warm
from mergekit_lite.kernels._jit import KERNELS
from mergekit_lite.plan.types import Step
from tests.engine.plans import plan_for, run, save_models
from tests.engine.test_chains import CHAINS, SHAPES

MODULES = {module.__name__.rpartition(".")[2] for module in (tile, order, sums, lora)}


def test_every_module_with_kernels_is_in_a_group() -> None:
    assert {name for group in warm.GROUPS for name in group} == MODULES
    found = {path.stem for path in Path(warm.__file__).parent.glob("*.py")}
    with_kernels = {
        name for name in found if "\n@kernel(" in Path(warm.__file__).with_stem(name).read_text()
    }
    assert with_kernels == MODULES


def test_runs_call_kernels_with_the_types_that_are_compiled(tmp_path: Path) -> None:
    # Other tests of this process call kernels with types of their own.
    before = {id(d): set(d.nopython_signatures) for d, _ in KERNELS}
    models = save_models(tmp_path, SHAPES)
    for number, chain in enumerate(("ties", "breadcrumbs by row", "dare by l1", "linear")):
        plan = plan_for(models, CHAINS[chain], needs_base=chain != "linear")
        run(plan, models, tmp_path / f"out{number}")
    pair = save_models(tmp_path, SHAPES, experts=["a", "b"])
    run(plan_for(pair, [Step("slerp", {"t": 0.5})], needs_base=False), pair, tmp_path / "slerp")
    called = [dispatcher for dispatcher, _ in KERNELS if dispatcher.nopython_signatures]
    assert {tile.merge_tile, order.scan_tile, sums.gram_tile, sums.kept_tile} <= set(called)
    for dispatcher, types in KERNELS:
        for signature in set(dispatcher.nopython_signatures) - before[id(dispatcher)]:
            assert signature.args == normalize_signature(types)[0], dispatcher.__name__


def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(warm, "_CHILD", "raise SystemExit('no room for code')")
    with pytest.raises(MergekitLiteError, match="could not be compiled: no room for code"):
        warm.compile_all()
    assert not warm.compiled_before()


@pytest.mark.parametrize("together", [True, False])
def test_what_is_compiled_is_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, together: bool
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    log = tmp_path / "log"
    monkeypatch.setattr(
        warm, "_CHILD", f"import sys; open({str(log)!r}, 'a').write(sys.argv[2] + '\\n')"
    )
    assert not warm.compiled_before()
    warm.compile_all(together=together)
    assert warm.compiled_before()
    assert sorted(log.read_text().splitlines()) == ['["order", "sums", "lora"]', '["tile"]']


def test_a_run_that_is_stopped_ends_the_compilers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(warm, "_CHILD", "import time; time.sleep(60)")
    started: list[subprocess.Popen[str]] = []
    start = warm._start

    def stopped(modules: tuple[str, ...]) -> subprocess.Popen[str]:
        if started:
            raise KeyboardInterrupt
        started.append(start(modules))
        return started[0]

    monkeypatch.setattr(warm, "_start", stopped)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        warm.compile_all()
    assert started[0].returncode is not None
    assert time.monotonic() - began < 30
    assert not warm.compiled_before()


@pytest.mark.slow
def test_a_fresh_cache_is_filled_once(tmp_path: Path) -> None:
    ask = (
        "import sys; sys.path[:0] = sys.argv[1:]; from mergekit_lite.kernels import warm;"
        "warm.compile_all(); print(warm.compiled_before())"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask, str(Path(warm.__file__).parents[2])],
        env={"MERGEKIT_LITE_CACHE": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "True"
    compiled = {path.name.split("-")[0] for path in tmp_path.rglob("*.nbc")}
    names = (dispatcher.py_func for dispatcher, _ in KERNELS)
    assert compiled == {f"{f.__module__.rpartition('.')[2]}.{f.__name__}" for f in names}
