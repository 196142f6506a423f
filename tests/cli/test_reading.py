"""Progress of commands that only read."""

from __future__ import annotations

import pytest

from mergekit_lite.cli import _reading


def test_a_line_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_reading, "LINE_EVERY", 0.0)
    with _reading.reading(4_000_000) as progress:
        progress(1_000_000)
        progress(2_000_000)
    shown = capsys.readouterr()
    first, second = shown.err.splitlines()
    assert first.startswith(" 25%  1 MB of 4 MB  ")
    assert second.startswith(" 75%  3 MB of 4 MB  ")
    assert second.endswith("/s")
    assert shown.out == ""


def test_what_is_soon_over_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with _reading.reading(10) as progress:
        progress(10)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar_is_drawn_and_taken_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with _reading.reading(10) as progress:
        progress(10)
    assert capsys.readouterr().out == ""
