"""Names that differ by a prefix."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.plan.names import few, prefixes_between
from tests.plan.hollow import llama

NAMES = list(llama(4))
part = st.text("abcdef_", min_size=1, max_size=6)
prefixes = st.lists(part, max_size=3).map(lambda parts: "".join(f"{p}." for p in parts))


@given(prefixes)
def test_an_added_prefix_is_found(prefix: str) -> None:
    renamed = [f"{prefix}{name}" for name in NAMES]
    missing = [name for name in NAMES if name not in renamed]
    extra = [name for name in renamed if name not in NAMES]
    found = prefixes_between(missing, extra)
    if not prefix:
        assert found == []
        return
    assert (found[0].strip, found[0].add, found[0].matched) == (prefix, "", len(NAMES))
    back = prefixes_between(extra, missing)[0]
    assert (back.strip, back.add) == ("", prefix)


def test_layers_are_not_taken_for_prefixes() -> None:
    deeper = [n for n in llama(8) if n not in NAMES]
    assert prefixes_between(NAMES, deeper) == []


def test_few_names_stand_for_many() -> None:
    assert few(["a", "b"]) == "`a`, `b`"
    assert few([str(i) for i in range(9)], 2) == "`0`, `1` and 7 more"
