from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.recipe.layers import covers, format_layers, parse_layers

RANGES = st.lists(
    st.tuples(st.integers(0, 200), st.none() | st.integers(0, 50)).map(
        lambda pair: (pair[0], None if pair[1] is None else pair[0] + pair[1])
    ),
    min_size=1,
    max_size=5,
).map(tuple)


@pytest.mark.parametrize(
    ("written", "ranges"),
    [
        (3, ((3, 3),)),
        ("3", ((3, 3),)),
        ("0-4", ((0, 4),)),
        ("30-", ((30, None),)),
        ("0-4,7,30-", ((0, 4), (7, 7), (30, None))),
        (" 0 - 4 , 7 ", ((0, 4), (7, 7))),
        ([1, "3-4"], ((1, 1), (3, 4))),
        ("outside", ()),
    ],
)
def test_the_forms_that_layers_can_take(written: Any, ranges: Any) -> None:
    assert parse_layers(written) == ranges


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("4-0", "ends before it begins"),
        ("-4", "counted from 0"),
        (-1, "counted from 0"),
        ("a", "not a layer or a range"),
        ("", "not a layer or a range"),
        ("1,,2", "not a layer or a range"),
        ("0:4", "not a layer or a range"),
        ([], "empty list"),
        (["outside", 3], "stands alone"),
        (True, "true/false"),
        (1.5, "not `1.5`"),
        (None, "not `None`"),
    ],
)
def test_what_is_no_layer_range(written: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_layers(written)


@given(RANGES)
def test_ranges_survive_being_written(ranges: Any) -> None:
    assert parse_layers(format_layers(ranges)) == ranges


@given(RANGES, st.integers(0, 300))
def test_covers_is_membership(ranges: Any, layer: int) -> None:
    named: set[int] = set()
    for first, last in ranges:
        named |= set(range(first, 301 if last is None else last + 1))
    assert covers(ranges, layer) == (layer in named)


def test_outside_is_what_is_in_no_layer() -> None:
    assert covers(parse_layers("outside"), None)
    assert not covers(parse_layers("outside"), 0)
    assert not covers(parse_layers("0-"), None)
    assert format_layers(()) == "outside"
