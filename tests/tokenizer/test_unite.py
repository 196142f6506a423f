"""Unions of tokenizers, as the library that loads them sees them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mergekit_lite.tokenizer.misfit import misfit
from mergekit_lite.tokenizer.read import plain_entry, tokens_of
from tests.tokenizer.tokenizers import added, bpe, read, unigram, unite, word_level


def loaded(data: Any) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(data))


def test_the_base_alone_stays_as_it_is() -> None:
    base = bpe("ab", [("a", "b")], [("<s>", 3)])
    assert unite(base, [base]) == base


def test_added_tokens_are_put_behind_those_of_the_base() -> None:
    base = word_level(["<unk>", "cat"], [("<s>", 2)])
    expert = word_level(["<unk>", "cat"], [("<tool>", 2), ("<s>", 3), ("<end>", 4)])
    united = loaded(unite(base, [expert]))
    assert united.get_vocab() == {"<unk>": 0, "cat": 1, "<s>": 2, "<tool>": 3, "<end>": 4}
    assert united.encode("cat<end>cat<s>").ids == [1, 4, 1, 2]


def test_words_behind_added_tokens_load_with_the_ids_they_were_given() -> None:
    base = word_level(["<unk>", "cat"], [("<s>", 2)])
    expert = word_level(["<unk>", "dog", "cow"], [("<tool>", 3)])
    data = unite(base, [expert])
    vocab = {"<unk>": 0, "cat": 1, "<s>": 2, "dog": 3, "cow": 4, "<tool>": 5}
    assert loaded(data).get_vocab() == vocab == tokens_of(data)
    assert loaded(data).encode("dog cat<tool>").ids == [3, 1, 5]


def test_merges_of_both_are_kept_the_bases_first() -> None:
    base = bpe("abc", [("a", "b")], [("<s>", 4)])
    expert = bpe("abcd", [("b", "c"), ("a", "b"), ("c", "d"), ("ab", "cd")])
    data = unite(base, [expert])
    assert data["model"]["merges"] == [["a", "b"], ["b", "c"], ["c", "d"], ["ab", "cd"]]
    united = loaded(data)
    assert united.encode("abcd").tokens == ["abcd"]
    assert united.encode("abc").tokens == ["ab", "c"]
    assert {t: united.token_to_id(t) for t in ("ab", "<s>", "d", "bc")} == {
        "ab": 3, "<s>": 4, "d": 5, "bc": 6,
    }  # fmt: skip


def test_merges_are_written_the_way_the_base_writes_them() -> None:
    base = bpe("ab", [("a", "b")])
    base["model"]["merges"] = ["a b"]
    other = bpe("ab", [("b", "a")])
    assert unite(base, [other])["model"]["merges"] == ["a b", "b a"]
    assert unite(other, [base])["model"]["merges"] == [["b", "a"], ["a", "b"]]
    other["model"]["merges"] = ["b a"]
    assert unite(base, [other])["model"]["merges"] == ["a b", "b a"]


def test_pieces_with_scores_stand_at_their_ids() -> None:
    base = unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], [("<s>", 3)])
    expert = unigram([("<unk>", 0.0), ("b", -1.0), ("ab", -0.5)], [("<s>", 3)])
    data = unite(base, [expert])
    assert data["model"]["vocab"][3:] == [["<s>", -12.0], ["ab", -0.5]]
    united = loaded(data)
    assert united.token_to_id("ab") == 4
    assert united.encode("ab<s>").ids == [4, 3]


def test_a_special_token_that_the_base_spells_as_a_word_becomes_special() -> None:
    base = word_level(["<unk>", "<tool>", "cat"])
    expert = word_level(["<unk>"], [("<tool>", 1)])
    assert unite(base, [expert])["added_tokens"] == [added("<tool>", 1)]


def test_further_tokens_can_be_added() -> None:
    data = unite(word_level(["<unk>", "cat"]), [], [plain_entry("<new>"), plain_entry("cat")])
    assert tokens_of(data) == {"<unk>": 0, "cat": 1, "<new>": 2}
    assert loaded(data).encode("cat<new>").ids == [1, 2]


def test_what_cannot_be_united_is_named() -> None:
    base = read(bpe("ab", [("a", "b")]))
    assert misfit(base, read(word_level(["x"]))) == (
        "it is of the kind WordLevel, the base's of the kind BPE"
    )
    other = read({**bpe("abc", []), "pre_tokenizer": {"type": "ByteLevel"}})
    assert misfit(base, other) == "its `pre_tokenizer` differ from the base's"
    # Only added tokens are new, and those are taken over whatever the model.
    byte_level = {**bpe("ab", [], [("<s>", 2)]), "decoder": {"type": "ByteLevel"}}
    assert misfit(base, read(byte_level)) == ""


words = st.lists(
    st.sampled_from(["cat", "dog", "cow", "hen", "fox", "owl"]), unique=True, max_size=6
)
specials = st.lists(st.sampled_from(["<a>", "<b>", "<c>"]), unique=True, max_size=3)


def some(own: list[str], special: list[str]) -> dict[str, Any]:
    vocab = ["<unk>", *own]
    return word_level(vocab, [(token, len(vocab) + n) for n, token in enumerate(special)])


@settings(max_examples=60)
@given(words, specials, words, specials, words, specials, st.sampled_from([None, 0, 2]))
def test_every_token_has_one_id_and_the_bases_ids_stay(
    w0: list[str],
    s0: list[str],
    w1: list[str],
    s1: list[str],
    w2: list[str],
    s2: list[str],
    indent: int | None,
) -> None:
    base, first, second = some(w0, s0), some(w1, s1), some(w2, s2)
    data = unite(base, [first, second], indent=indent)
    ids = tokens_of(data)
    assert loaded(data).get_vocab() == ids
    assert sorted(ids.values()) == list(range(len(ids)))
    assert set(ids) == {"<unk>", *w0, *s0, *w1, *s1, *w2, *s2}
    assert all(ids[token] == number for token, number in tokens_of(base).items())


@pytest.mark.parametrize("damage", [{"model": {}}, {"model": {"vocab": 3}}, {}])
def test_what_is_no_tokenizer_is_said_so(damage: dict[str, Any]) -> None:
    from mergekit_lite.errors import DataError

    with pytest.raises(DataError, match="is not a tokenizer"):
        tokens_of(damage)
