"""The text of a tokenizer: where its lists are, and what is put into them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.tokenizer.document import Document, edited, parsed
from mergekit_lite.tokenizer.read import tokens_in
from tests.tokenizer.tokenizers import added, added_to, bpe, read, word_level

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=150)
@given(
    st.dictionaries(st.sampled_from(["model", "added_tokens", "x", 'a"}\\']), values, max_size=4),
    values,
    st.sampled_from([None, 0, 3]),
    st.booleans(),
)
def test_values_and_their_places_are_those_of_the_text(
    data: dict[str, Any], vocab: Any, indent: int | None, plain: bool
) -> None:
    data["model"] = {"{": "]", "vocab": vocab}
    text = json.dumps(data, indent=indent, ensure_ascii=plain)
    document = parsed(f" {text}\n".encode())
    assert isinstance(document, Document)
    assert document.data == data
    found = {key: json.loads(f" {text}"[a:b]) for key, (a, b) in document.places.items()}
    expected = {"model.vocab": vocab}
    assert found == expected | ({"added_tokens": data["added_tokens"]} if len(found) > 1 else {})
    assert ("added_tokens" in data) == ("added_tokens" in found)


@pytest.mark.parametrize(
    "text",
    ["{", '{"a"', '{"a":1', '{"a":1,}', '{,"a":1}', '{"a" 1}', "{1:2}", '{"a":1}x', '{"a":}'],
)
def test_what_is_not_json_is_refused_as_by_the_library(text: str) -> None:
    for read_text in (json.loads, parsed):
        with pytest.raises(json.JSONDecodeError):
            read_text(text.encode())


def test_what_is_no_object_is_what_it_is() -> None:
    assert parsed(b"[1]") == [1]


def test_all_but_what_is_added_stays_as_it_was_written() -> None:
    base = """{
  "added_tokens": [],
  "odd": 1.50e0,
  "model": {"type": "BPE",
    "vocab": {
      "a": 0,
      "\\u00e4": 1
    },
    "merges": []}
}
"""
    document = parsed(base.encode())
    other = read(bpe("aäb", [("a", "b"), ("b", "ä")], [("</s>", 6)]))
    assert isinstance(document, Document)
    text = edited(base, added_to(tokens_in(document), [other])["edits"])
    head, listed, *rest = text.splitlines(keepends=True)
    assert head == "{\n"
    assert json.loads(listed.partition(":")[2].rstrip(",\n")) == [added("</s>", 5)]
    expected = """\
  "odd": 1.50e0,
  "model": {"type": "BPE",
    "vocab": {
      "a": 0,
      "\\u00e4": 1,
      "b": 2,
      "ab": 3,
      "bä": 4
    },
    "merges": [["a","b"],["b","ä"]]}
}
"""
    assert "".join(rest) == expected


def test_a_text_without_a_list_of_added_tokens_gets_one() -> None:
    data = word_level(["<unk>"])
    del data["added_tokens"]
    found = added_to(read(data), [read(word_level(["<unk>"], [("<s>", 1)]))])
    united = json.loads(edited(json.dumps(data), found["edits"]))
    assert [entry["content"] for entry in united.pop("added_tokens")] == ["<s>"]
    assert united == data


def test_nothing_new_is_nothing_to_add() -> None:
    base = read(word_level(["<unk>", "cat"]))
    assert added_to(base, [base]) == {}
