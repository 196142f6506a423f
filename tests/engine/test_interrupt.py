"""Signals to the real process: what they leave can be taken up to the very same bytes."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkpoints import perturbed, tiny_llama
from tests.engine.processes import Command, Ended

MODELS = """\
base: base
experts:
  math: {model: math, weight: 0.5}
  code: {model: code, weight: 0.5}
steps:
  - ties: {density: 0.3}
"""
COPIES = """\
rules:
  - {match: "*", take: math}
  - {match: {layers: "0"}, take: code}
  - {match: {role: norm}, take: base}
"""
RECIPES = {"ties": MODELS, "copies": MODELS + COPIES}
SLOW_DISK = "import os, time; os.fsync = lambda file: time.sleep(0.1)"


@dataclass(frozen=True)
class Place:
    """A folder with models and recipes, and the outputs of undisturbed runs in `whole/NAME`."""

    folder: Path
    shard_size: str

    @property
    def out(self) -> Path:
        return self.folder / "disturbed" / "out"

    @property
    def work(self) -> Path:
        return self.out.with_name("out.partial")

    def start(self, recipe: str, out: Path | None = None, *, before: str = "") -> Command:
        path = self.folder / f"{recipe}.yaml"
        path.write_text(RECIPES[recipe])
        words = (path, "-o", out or self.out, "--shard-size", self.shard_size)
        return Command(self.folder, words, cache=self.folder / "cache", before=before)

    def whole(self, recipe: str) -> Path:
        """Return the output of an undisturbed run; the same folder name is in its card."""
        out = self.folder / "whole" / recipe / "out"
        if not out.exists():
            ended = self.start(recipe, out).end()
            assert ended.code == 0, ended.said
        return out

    def same(self, recipe: str) -> None:
        """Require every byte of an undisturbed run, but for what tells of the run itself."""
        wanted, got = self.whole(recipe), self.out
        names = sorted(path.name for path in wanted.iterdir())
        assert sorted(path.name for path in got.iterdir()) == names
        for name in names:
            left, right = (folder / name for folder in (wanted, got))
            if name == "merge_report.json":
                a, b = (json.loads(path.read_text()) for path in (left, right))
                assert a.pop("run").keys() == b.pop("run").keys()
                assert a == b
            else:
                assert left.read_bytes() == right.read_bytes(), name
        assert [path.name for path in got.parent.iterdir()] == ["out"]

    def ended(self) -> bool:
        """Return whether the output is there and ended; a run may die between the two.

        What it leaves then is complete but for its journal, by which the next run knows it.
        """
        return self.out.exists() and not (self.out / "journal.jsonl").exists()

    def forget_lock(self) -> None:
        """Remove the file by which a run holds the folder: who dies last of all leaves it."""
        self.work.with_name("out.partial.lock").unlink(missing_ok=True)

    def shards_done(self) -> int:
        for folder in (self.work, self.out):
            journal = folder / "journal.jsonl"
            if journal.exists():
                return max(0, journal.read_bytes().count(b"\n") - 1)
        return 0


@pytest.fixture(scope="module")
def small(
    tmp_path_factory: pytest.TempPathFactory,
    base_folder: Path,
    expert_folders: dict[str, Path],
) -> Place:
    folder = tmp_path_factory.mktemp("small")
    for name, source in (("base", base_folder), *expert_folders.items()):
        shutil.copytree(source, folder / name)
    return Place(folder, "9kB")


def _stopped(ended: Ended) -> None:
    assert ended.code == 130, ended.said
    assert "run the same command again to resume" in ended.said
    assert "Traceback" not in ended.said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_polite_signal_stops_the_run_and_the_next_one_resumes(
    small: Place, number: signal.Signals
) -> None:
    """Copies need no kernels, and a slow disk leaves time to hit the run in its middle."""
    command = small.start("copies", before=SLOW_DISK)
    command.wait_for("shard")
    command.send(number)
    ended = command.end()
    _stopped(ended)
    assert not small.out.exists()
    done = small.shards_done()
    (shards,) = (event["shards"] for event in ended.events if event["event"] == "start")
    assert 1 <= done < shards
    assert f"stopped with {done} of {shards} shards done" in ended.said
    again = small.start("copies").end()
    assert again.code == 0, again.said
    assert f"{done} of {shards} shards were done and are intact" in again.said
    small.same("copies")
    report = json.loads((small.out / "merge_report.json").read_text())["run"]
    assert report["resumed_shards"] == done
    shutil.rmtree(small.out.parent)


def test_an_impatient_user_loses_no_more(small: Place) -> None:
    """A second Ctrl-C comes while the threads are being stopped."""
    command = small.start("copies", before=SLOW_DISK)
    command.wait_for("shard")
    command.send(signal.SIGINT)
    time.sleep(0.02)
    command.send(signal.SIGINT)
    _stopped(command.end())
    assert not small.out.exists()
    assert small.shards_done() >= 1
    shutil.rmtree(small.out.parent)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Three models of 61 MB, of which a merge takes about two seconds."""
    folder = tmp_path_factory.mktemp("large")
    base = tiny_llama(folder / "base", layers=12, hidden=512, intermediate=1024, vocab=4000)
    for seed, name in enumerate(("math", "code"), start=1):
        perturbed(base, folder / name, seed=seed, scale=0.02)
    place = Place(folder, "4MB")
    for recipe in RECIPES:
        place.whole(recipe)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_25_sudden_deaths(large: Place, recipe: str) -> None:
    """Most strike while shards are written, some in the start and some at the end or after it."""
    points = random.Random(recipe)
    command = large.start(recipe)
    ready = command.wait_for("start")
    assert command.end().code == 0
    span = time.monotonic() - command.began - ready
    shutil.rmtree(large.out.parent)
    hit = []
    for moment in range(25):
        command = large.start(recipe)
        if moment < 3:
            time.sleep(points.uniform(0, ready))
        else:
            command.wait_for("start")
            time.sleep(points.uniform(0, span))
        command.send(signal.SIGKILL)
        command.end()
        hit.append(large.shards_done())
        if not large.ended():
            again = large.start(recipe).end()
            assert again.code == 0, again.said
            found = f"{hit[-1]} of 16 shards were done and are intact" in again.said
            assert found == (hit[-1] > 0), again.said
        large.forget_lock()
        large.same(recipe)
        shutil.rmtree(large.out.parent)
    assert len(set(hit)) >= 4, f"the kills hit no running merge: {hit}"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_dies_again_and_again_ends_nevertheless(large: Place, recipe: str) -> None:
    done = []
    for _ in range(6):
        command = large.start(recipe)
        command.wait_for("shard")
        command.send(signal.SIGKILL)
        if command.end().code == 0 or large.ended():
            break
        done.append(large.shards_done())
    assert done == sorted(done), "a finished shard was lost"
    if not large.ended():
        assert large.start(recipe).end().code == 0
    large.forget_lock()
    large.same(recipe)
    shutil.rmtree(large.out.parent)
    assert len(done) >= 2
