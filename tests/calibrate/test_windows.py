"""Running text in windows of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.calibrate.windows import windows


def test_windows_are_whole_lines_and_the_last_may_be_short() -> None:
    assert windows("aaa\nbbb\ncc\nd\n", 6) == ["aaa\nbbb\n", "cc\nd\n"]


def test_a_line_of_more_than_four_windows_is_cut_between_characters() -> None:
    assert windows("äöüß" * 3, 4) == ["äö", "üß"] * 3
    assert windows("x" * 16, 4) == ["x" * 16]


@given(st.text(alphabet="aä\n", min_size=1, max_size=80), st.integers(1, 9))
def test_nothing_is_lost_but_windows_of_blanks(text: str, size: int) -> None:
    found = windows(text, size)
    assert "".join(found).replace("\n", "") == text.replace("\n", "")
    assert all(window.strip() for window in found)
    # A window is full before its last line, which has at most four windows' bytes.
    assert all(len(window.encode()) <= 5 * size + 1 for window in found)
