"""Resuming: whatever an interruption has left, the next run makes the same bytes of it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mergekit_lite.engine.events import Event
from mergekit_lite.engine.journal import JOURNAL, Journal
from mergekit_lite.engine.local import execute
from mergekit_lite.engine.options import Options, Report
from mergekit_lite.errors import Interrupted, RecipeError
from mergekit_lite.plan.types import Plan
from mergekit_lite.sources import Model
from tests.engine.plans import plan_for, run, save_models
from tests.engine.test_chains import CHAINS

SHAPES = {"a": (40, 33), "b": (1000,), "c": (17, 90), "d": (1200,)}


@dataclass(frozen=True)
class Work:
    """A plan of four shards, what an undisturbed run made of it, and a folder to disturb."""

    plan: Plan
    models: dict[str, Model]
    whole: Path
    folder: Path
    report: Report

    @property
    def files(self) -> list[str]:
        return [shard.file for shard in self.plan.shards]

    @property
    def journal(self) -> Path:
        return self.folder / JOURNAL

    def lines(self) -> list[bytes]:
        """Return the journal lines of the undisturbed run: the plan, then one for each shard."""
        lines = (self.whole / JOURNAL).read_bytes().splitlines(keepends=True)
        return [lines[0], *sorted(lines[1:], key=lambda line: json.loads(line)["shard"])]

    def leave(self, done: tuple[int, ...]) -> None:
        """Make the folder look as if a run had been killed with only these shards done."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for number in done:
            shutil.copy2(self.whole / self.files[number], self.folder)
        lines = self.lines()
        self.journal.write_bytes(b"".join([lines[0], *(lines[1 + n] for n in done)]))

    def run(self, **options: object) -> Report:
        return run(self.plan, self.models, self.folder, **options)

    def complete(self, resumed: set[int], **options: object) -> Report:
        """Run to the end and require that just `resumed` was not made anew."""
        kept = {n: os.stat(self.folder / self.files[n]).st_ino for n in resumed}
        report = self.run(**options)
        for n, file in enumerate(self.files):
            path = self.folder / file
            assert path.read_bytes() == (self.whole / file).read_bytes(), file
            if n in kept:
                assert path.stat().st_ino == kept[n], f"{file} was made again"
        assert not list(self.folder.glob("*.partial"))
        assert report.resumed_shards == len(resumed)
        sizes = [shard.nbytes for n, shard in enumerate(self.plan.shards) if n not in resumed]
        assert report.bytes_written == sum(sizes)
        assert report.shards == self.report.shards
        assert report.inputs == self.report.inputs
        return report


@pytest.fixture
def work(tmp_path: Path) -> Work:
    models = save_models(tmp_path, SHAPES)
    plan = plan_for(models, CHAINS["ties"], shard_size=3100)
    assert len(plan.shards) == 4
    report = run(plan, models, tmp_path / "whole", threads=1)
    return Work(plan, models, tmp_path / "whole", tmp_path / "out", report)


def test_a_run_that_was_not_disturbed_reports_all_it_did(work: Work) -> None:
    assert work.report.resumed_shards == 0
    assert work.report.bytes_written == sum(
        (work.whole / file).stat().st_size for file in work.files
    )
    assert work.report.bytes_read > 0
    first, *rest = map(json.loads, work.lines())
    assert first["plan"] == work.plan.content_digest()
    assert [line["file"] for line in rest] == work.files


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_every_set_of_finished_shards(work: Work, left: int) -> None:
    """Shards end in any order, and one that was open has left a `.partial` file."""
    parts = {n: json.loads(line)["bytes_read"] for n, line in enumerate(work.lines()[1:])}
    for done in itertools.combinations(range(4), 4 - left):
        work.leave(done)
        for number in set(range(4)) - set(done):
            # Longer than the shard will be, and full of what must not show.
            (work.folder / f"{work.files[number]}.partial").write_bytes(b"\xff" * 9000)
        report = work.complete(set(done))
        assert report.bytes_read == work.report.bytes_read - sum(parts[n] for n in done)


@pytest.mark.parametrize("jit", ["1", "0"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("kind", "number", "done"),
    [("start", 1, 0), *(("shard", n, n) for n in (1, 2, 3, 4)), ("done", 1, 4)],
)
def test_an_interruption_at_every_event(
    work: Work,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    number: int,
    done: int,
    threads: int,
    jit: str,
) -> None:
    """The signal arrives in the thread that tells the events."""
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    told = itertools.count(1)

    def stop(event: Event) -> None:
        if event.kind == kind and next(told) == number:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        execute(work.plan, work.models, work.folder, Options(threads=threads), stop)
    assert caught.value.exit_code == 130
    assert "again to resume" in caught.value.problems[0].hint
    finished = {json.loads(line)["shard"] for line in _lines(work)[1:]}
    # Those that were being closed are waited for and kept.
    assert len(finished) >= done
    assert f"stopped with {len(finished)} of 4 shards done" in str(caught.value)
    work.complete(finished, threads=threads)


def _lines(work: Work) -> list[bytes]:
    return work.journal.read_bytes().splitlines()


def test_a_journal_cut_at_any_byte(work: Work) -> None:
    lines = work.lines()
    text = b"".join(lines)
    ends = list(itertools.accumulate(map(len, lines)))
    cuts = {e + d for e in ends for d in (-2, -1, 0, 1)} | set(range(0, len(text), 97))
    for cut in sorted(c for c in cuts if 0 <= c <= len(text)):
        work.leave((0, 1, 2, 3))
        work.journal.write_bytes(text[:cut])
        # A line is whole once its last brace is there, with or without the newline.
        done = {n for n, end in enumerate(ends[1:]) if cut >= end - 1}
        if cut < ends[0] - 1:
            done = set()
        work.complete(done)
        # What was torn has not swallowed what came after it.
        for line in _lines(work)[-(4 - len(done)) or len(lines) :]:
            json.loads(line)
        assert work.run().resumed_shards == 4


@pytest.mark.parametrize(
    "rubbish",
    [b"", b"\n", b"\0" * 512, b'{"plan": "', b"\xff\xfe\xfd\n", b"null\n", b"[1, 2]\n", b"7\n"],
    ids=repr,
)
def test_a_first_line_that_was_never_whole_is_a_fresh_start(work: Work, rubbish: bytes) -> None:
    work.leave(())
    work.journal.write_bytes(rubbish)
    work.complete(set())
    assert work.run().resumed_shards == 4


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\0" * 100 + b"\n",
        b"\xff\xfe\n",
        b"{}\n",
        b"[]\n",
        b'"text"\n',
        b'{"shard": 1}\n',
        b'{"bytes_read": 1, "file": "x", "inputs": 3, "nbytes": 1, "sha256": "", "shard": 0}\n',
        b'{"shard": 1, "from": "another version", "file": "", "nbytes": 0, "inputs": {}}\n',
    ],
    ids=repr,
)
@pytest.mark.parametrize("place", ["last", "between"])
def test_a_line_that_is_no_shard_counts_as_torn(work: Work, rubbish: bytes, place: str) -> None:
    work.leave((0, 2))
    head, zero, two = work.journal.read_bytes().splitlines(keepends=True)
    lines = [head, zero, rubbish, two] if place == "between" else [head, zero, two, rubbish]
    work.journal.write_bytes(b"".join(lines))
    work.complete({0, 2})


@pytest.mark.parametrize("number", [9, 1, -3, "1", None])
def test_a_line_of_a_file_that_the_plan_does_not_know_is_ignored(
    work: Work, number: object
) -> None:
    work.leave((0, 2))
    line = json.loads(work.lines()[2])
    shutil.copy(work.whole / line["file"], work.folder / "else.safetensors")
    with work.journal.open("ab") as file:
        file.write(
            json.dumps({**line, "shard": number, "file": "else.safetensors"}).encode() + b"\n"
        )
    work.complete({0, 2})


Damage = Callable[[Path], object]


def _flip(at: int) -> Damage:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    return flip


DAMAGES: dict[str, Damage] = {
    "first byte": _flip(0),
    "last byte": _flip(-1),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one byte long": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_is_not_as_it_was_is_made_again(work: Work, damage: str) -> None:
    work.leave((0, 1, 2, 3))
    DAMAGES[damage](work.folder / work.files[2])
    work.complete({0, 1, 3})
    assert work.run().resumed_shards == 4


def test_a_complete_folder_is_left_as_it_is(work: Work) -> None:
    work.leave((0, 1, 2, 3))
    before = work.journal.read_bytes()
    report = work.complete({0, 1, 2, 3})
    assert (report.bytes_read, report.bytes_written) == (0, 0)
    assert work.journal.read_bytes() == before


def test_the_journal_of_another_plan_is_refused_and_left_alone(work: Work) -> None:
    work.leave((0, 1))
    other = plan_for(work.models, CHAINS["ties"], shard_size=3100, seed=8)
    assert [shard.file for shard in other.shards] == work.files
    before = _state(work.folder)
    with pytest.raises(RecipeError, match="another recipe") as caught:
        run(other, work.models, work.folder)
    assert "--fresh" in caught.value.problems[0].hint
    assert _state(work.folder) == before
    report = run(other, work.models, work.folder, fresh=True)
    assert report.resumed_shards == 0
    assert json.loads(_lines(work)[0])["plan"] == other.content_digest()


def _state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("change", ["time", "size", "both"])
@pytest.mark.parametrize("name", ["base", "code"])
def test_inputs_that_changed_are_refused_by_name(work: Work, name: str, change: str) -> None:
    """Half a merge of the old weights and half of the new would look like a whole one."""
    work.leave((0, 1))
    path = Path(work.models[name].root)
    was = path.stat()
    if change != "time":
        path.write_bytes(path.read_bytes() + b"\0")
    later = was.st_mtime_ns + (0 if change == "size" else 1_000_000_000)
    os.utime(path, ns=(was.st_atime_ns, later))
    before = _state(work.folder)
    with pytest.raises(RecipeError, match="inputs changed") as caught:
        work.run()
    (problem,) = caught.value.problems
    assert f"{name}/{name}.safetensors" in problem.what
    assert not any(other in problem.what for other in {"base", "math", "code", "chat"} - {name})
    assert "--fresh" in problem.hint
    assert _state(work.folder) == before
    if change == "time":
        _complete_anew(work)


def _complete_anew(work: Work) -> None:
    report = work.run(fresh=True)
    assert report.resumed_shards == 0
    assert report.shards == work.report.shards


def test_fresh_throws_away_what_is_there(work: Work) -> None:
    work.leave((0, 1, 2))
    (work.folder / "stray.safetensors").write_bytes(b"old")
    report = work.run(fresh=True)
    assert report.resumed_shards == 0
    assert report.bytes_written == work.report.bytes_written
    assert not (work.folder / "stray.safetensors").exists()
    assert work.run().resumed_shards == 4


def test_removing_the_journal_twice_does_no_harm(work: Work) -> None:
    work.leave((0,))
    journal = Journal(work.folder, work.plan)
    journal.remove()
    journal.remove()
    assert not work.journal.exists()
