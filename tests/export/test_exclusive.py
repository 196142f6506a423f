"""One folder is worked on by one run at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest

from mergekit_lite.engine.events import Event
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.export.exclusive import lock_file, only_run
from mergekit_lite.export.finish import finish

from .builders import merged

HOLD = """
import sys, time
from pathlib import Path
from mergekit_lite.export.exclusive import only_run
with only_run(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


def silent(_: Event) -> None:
    """Take an event and say nothing."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_run_into_a_folder_is_refused_at_once(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    seen: list[str] = []

    def meanwhile(*words: Any, **options: Any) -> None:
        work = sorted((tmp_path / "out.partial").iterdir())
        for fresh in (False, True):
            with pytest.raises(RecipeError, match=f"process {os.getpid()}.*out.partial") as caught:
                merged(out, recipe, fresh=fresh)
            seen.append(caught.value.problems[0].hint)
        assert sorted((tmp_path / "out.partial").iterdir()) == work
        finish(*words, **options)

    monkeypatch.setattr("mergekit_lite.export.merge.finish", meanwhile)
    merged(out, recipe)
    assert len(seen) == 2
    assert "wait" in seen[0]
    assert "another folder" in seen[0]
    assert [name for name in names(tmp_path) if "out" in name] == ["out"]


def test_folders_side_by_side_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with only_run(tmp_path / "a.partial", silent), only_run(tmp_path / "b.partial", silent):
        assert names(tmp_path) == ["a.partial.lock", "b.partial.lock"]
    assert names(tmp_path) == []


def test_a_failed_run_leaves_no_lock(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise DataError("bad bytes")

    monkeypatch.setattr("mergekit_lite.engine.local.execute", fail)
    with pytest.raises(DataError, match="bad bytes"):
        merged(tmp_path / "deep" / "er" / "out", recipe)
    assert not (tmp_path / "deep").exists()


def test_the_lock_of_a_killed_process_is_nobodys(tmp_path: Path) -> None:
    work = tmp_path / "out.partial"
    words = [sys.executable, "-c", HOLD, str(work)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RecipeError, match=f"process {other.pid}"), only_run(work, silent):
            pass
        other.kill()
    assert lock_file(work).exists()
    with only_run(work, silent):
        assert lock_file(work).read_text().startswith(f"{os.getpid()} ")
    assert names(tmp_path) == []


def test_a_lock_that_was_removed_while_it_was_awaited_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner ends between our opening of the file and our lock on it; a third run begins."""
    work, real = tmp_path / "out.partial", fcntl.flock
    third: list[int] = []

    def flock(handle: int, how: int) -> None:
        if not third and how & fcntl.LOCK_EX:
            lock_file(work).unlink()
            third.append(os.open(lock_file(work), os.O_RDWR | os.O_CREAT))
            real(third[0], fcntl.LOCK_EX)
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RecipeError, match="another run is working"), only_run(work, silent):
        pass
    assert lock_file(work).exists()
    os.close(third[0])


def test_of_many_that_begin_together_one_runs_at_a_time(tmp_path: Path) -> None:
    work, inside, most, entered = tmp_path / "out.partial", [], [], []

    def compete() -> None:
        for _ in range(200):
            try:
                with only_run(work, silent):
                    inside.append(1)
                    most.append(len(inside))
                    entered.append(1)
                    inside.pop()
            except RecipeError:
                continue

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(entered) >= 4
    assert names(tmp_path) == []


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    told: list[Event] = []
    with only_run(tmp_path / "out.partial", told.append):
        assert names(tmp_path) == []
    (event,) = told
    assert event.kind == "note"
    assert event.text.startswith("warning: ")
    assert "no locks" in event.text


def test_a_shard_that_something_else_has_changed_is_not_put_in_place(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def meddle(*words: Any, **options: Any) -> None:
        with first().open("ab") as file:
            file.write(b"more")
        finish(*words, **options)

    def first() -> Path:
        return min((tmp_path / "out.partial").glob("model*"))

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("mergekit_lite.export.merge.finish", meddle)
        with pytest.raises(DataError, match=r"has [\d,]+ bytes, .*wrote [\d,]+") as caught:
            merged(out, recipe)
    assert caught.value.problems[0].where == str(first())
    assert not out.exists()
    assert merged(out, recipe).is_dir()
