"""What a run shows while it works."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from mergekit_lite.cli._output import bytes_text, seconds_text, table
from mergekit_lite.cli._progress import ProgressSink, choose_style, progress_line, sweep_line
from mergekit_lite.engine.events import Event

HALF = Event(
    "progress",
    bytes_read=3_000_000_000,
    bytes_written=1_000_000_000,
    bytes_total=2_000_000_000,
    shard=1,
    shards=2,
    name="model.norm.weight",
    seconds=8.0,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(style: str, *events: Event) -> str:
    stream = io.StringIO()
    with ProgressSink(style, stream) as sink:  # type: ignore[arg-type]
        for event in events:
            sink(event)
    return stream.getvalue()


def test_style_follows_the_stream() -> None:
    assert choose_style("plain", False, io.StringIO()) == "lines"
    assert choose_style("plain", False, Terminal()) == "bar"
    assert choose_style("plain", True, Terminal()) == "quiet"
    assert choose_style("json", True, Terminal()) == "json"


def test_line_has_share_speed_and_time_left() -> None:
    line = progress_line(HALF)
    assert " 50%  1 GB of 2 GB written  500 MB/s  8.0 s left  shard 1/2" in line


def test_lines_come_every_few_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 101.0, 106.0, 107.0])
    monkeypatch.setattr("mergekit_lite.cli._progress.time.monotonic", lambda: next(clock))
    text = shown("lines", Event("start"), HALF, HALF, HALF)
    assert text.count("written") == 1


def test_notes_and_the_end_are_always_shown() -> None:
    text = shown("lines", Event("start"), Event("note", text="found 1 of 2 shards done"), HALF)
    assert "found 1 of 2 shards done\n" in text
    done = Event("done", bytes_read=4_000_000, bytes_written=1_000_000, seconds=2.0)
    assert shown("lines", done) == "read 4 MB, wrote 1 MB in 2.0 s, 2.5 MB/s\n"


def test_json_is_one_object_a_line() -> None:
    text = shown("json", Event("start", shards=2), Event("note", text="hello"), HALF)
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["event"] for line in lines] == ["start", "note", "progress"]
    assert lines[1]["text"] == "hello"
    assert lines[2]["bytes_written"] == 1_000_000_000


def test_quiet_says_nothing() -> None:
    assert shown("quiet", Event("start"), HALF, Event("note", text="x"), Event("done")) == ""


def test_bar_draws_on_a_terminal_and_keeps_notes() -> None:
    stream = Terminal()
    with ProgressSink("bar", stream) as sink:
        sink(Event("start", bytes_total=2_000_000_000, shards=2))
        sink(HALF)
        sink(Event("note", text="a note"))
        sink(Event("done", seconds=1.0))
    assert "a note" in stream.getvalue()
    assert "read 0 B" in stream.getvalue()


SWEPT = Event(
    "sweep",
    bytes_read=1_500_000_000,
    bytes_total=6_000_000_000,
    name="model.norm.weight",
    text="magnitude",
    seconds=3.0,
)


def test_a_sweep_says_what_it_has_read_and_what_for(monkeypatch: pytest.MonkeyPatch) -> None:
    line = sweep_line(SWEPT)
    assert " 25%  1.5 GB of 6 GB swept for magnitude  500 MB/s  9.0 s left" in line
    assert "100%  6 GB of 6 GB" in sweep_line(replace(SWEPT, bytes_read=7_000_000_000))
    assert "? left" in sweep_line(replace(SWEPT, bytes_read=0))
    clock = iter([100.0, 101.0, 106.0, 107.0])
    monkeypatch.setattr("mergekit_lite.cli._progress.time.monotonic", lambda: next(clock))
    begun = replace(SWEPT, bytes_read=0)
    assert shown("lines", begun, SWEPT, SWEPT, SWEPT).count("swept") == 1


def test_a_sweep_has_a_bar_that_gives_way_to_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    with ProgressSink("bar", stream) as sink:
        for event in (replace(SWEPT, bytes_read=0), SWEPT):
            sink(event)
        assert sink._bar is not None
        task = sink._bar.tasks[0]
        assert (task.completed, task.total) == (SWEPT.bytes_read, SWEPT.bytes_total)
        swept = sink._bar
        sink(Event("start", bytes_total=10))
        assert sink._bar is not swept
        assert sink._bar.tasks[0].total == 10
        assert swept.finished or not swept.live.is_started
    assert "statistics for magnitude" in stream.getvalue()


def test_a_sweep_is_told_in_json() -> None:
    lines = [json.loads(line) for line in shown("json", SWEPT).splitlines()]
    assert [(line["event"], line["bytes_read"], line["text"]) for line in lines] == [
        ("sweep", 1_500_000_000, "magnitude")
    ]


def test_units() -> None:
    assert [bytes_text(n) for n in (0, 999, 1000, 1_234_000, 5e9, 2e12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.23 MB",
        "5 GB",
        "2 TB",
    ]
    assert [seconds_text(s) for s in (0.04, 9.96, 59.4, 61, 3720)] == [
        "0.0 s",
        "10 s",
        "59 s",
        "1 min 1 s",
        "1 h 2 min",
    ]


def test_table_sets_numbers_to_the_right() -> None:
    assert table(("a", "n"), [("x", 1), ("yy", 20)], "lr") == "a    n\nx    1\nyy  20"
