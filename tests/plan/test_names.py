"""Names that differ by a prefix."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.plan.names import few, prefix_between
from tests.plan.hollow import llama

NAMES = list(llama(4))
part = st.text("abcdef_", min_size=1, max_size=6)
prefixes = st.lists(part, max_size=3).map(lambda parts: "".join(f"{p}." for p in parts))


@given(prefixes)
def test_an_added_prefix_is_found(prefix: str) -> None:
    renamed = [f"{prefix}{name}" for name in NAMES]
    missing = [name for name in NAMES if name not in renamed]
    extra = [name for name in renamed if name not in NAMES]
    found = prefix_between(missing, extra)
    if not prefix:
        assert found is None
        return
    assert found is not None
    assert (found.strip, found.add, found.matched) == (prefix, "", len(NAMES))
    back = prefix_between(extra, missing)
    assert back is not None
    assert (back.strip, back.add) == ("", prefix)


def test_most_of_the_tensors_must_be_explained() -> None:
    assert prefix_between(["model.a.weight"], ["b.weight"]) is None
    assert prefix_between(NAMES, ["x.model.norm.weight"]) is None
    assert prefix_between([], ["a"]) is None


def test_layers_are_not_taken_for_prefixes() -> None:
    deeper = [n for n in llama(8) if n not in NAMES]
    assert prefix_between(NAMES, deeper) is None


def test_few_names_stand_for_many() -> None:
    assert few(["a", "b"]) == "`a`, `b`"
    assert few([str(i) for i in range(9)], 2) == "`0`, `1` and 7 more"
