"""Which token has which id, from files of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergekit_lite.errors import DataError
from mergekit_lite.tokenizer import read_tokens, same_files
from mergekit_lite.tokenizer.templates import read_template, same_template
from tests.checkpoints import write_json
from tests.tokenizer.tokenizers import unigram, word_level


def ids(folder: Path) -> dict[str, int]:
    found = read_tokens(folder)
    assert found is not None
    return dict(found.ids)


def test_the_tokens_of_a_tokenizer_json(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", word_level(["<unk>", "cat"], [("<s>", 2)]))
    assert ids(tmp_path) == {"<unk>": 0, "cat": 1, "<s>": 2}
    write_json(tmp_path / "tokenizer.json", unigram([("<unk>", 0), ("a", -1)], [("<s>", 2)]))
    found = read_tokens(tmp_path)
    assert found is not None
    assert (found.ids, found.highest, found.by_id[1]) == ({"<unk>": 0, "a": 1, "<s>": 2}, 2, "a")


def test_tokens_that_other_files_add(tmp_path: Path) -> None:
    write_json(tmp_path / "vocab.json", {"a": 0, "b": 1})
    write_json(tmp_path / "added_tokens.json", {"<pad>": 3})
    entry = {"content": "<tool>", "special": True}
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": {"2": entry}})
    assert ids(tmp_path) == {"a": 0, "b": 1, "<tool>": 2, "<pad>": 3}
    assert list(ids(tmp_path)) == ["a", "b", "<tool>", "<pad>"]


def test_a_list_of_words(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nder\n")
    assert ids(tmp_path) == {"[PAD]": 0, "[UNK]": 1, "der": 2}


def piece(text: str) -> bytes:
    inner = b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15\x00\x00\x80\xbf\x18\x01"
    return b"\x0a" + bytes([len(inner)]) + inner


def test_a_sentencepiece_model(tmp_path: Path) -> None:
    trainer = b"\x12\x03\x08\x96\x01"  # a field that is not of a piece
    data = piece("<unk>") + piece("▁hallo") + trainer + piece("<s>")
    (tmp_path / "tokenizer.model").write_bytes(data)
    assert ids(tmp_path) == {"<unk>": 0, "▁hallo": 1, "<s>": 2}
    for damage in (data[:-4], b"\x0b\x01"):
        (tmp_path / "tokenizer.model").write_bytes(damage)
        with pytest.raises(DataError, match="is not a sentencepiece model"):
            read_tokens(tmp_path)


def test_no_vocabulary_is_not_an_empty_one(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "Odd"})
    assert read_tokens(tmp_path) is None
    assert read_tokens(tmp_path / "gone") is None


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json` does not hold valid JSON"):
        read_tokens(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(DataError, match="does not hold a JSON object"):
        read_tokens(tmp_path)


def test_the_same_files_are_known_without_reading_their_content(tmp_path: Path) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    for folder in (left, right):
        folder.mkdir()
    assert not same_files(left, right)
    for folder in (left, right):
        write_json(folder / "tokenizer.json", word_level(["<unk>", "cat"]))
    assert same_files(left, right)
    write_json(right / "tokenizer.json", word_level(["<unk>", "cow"]))
    assert not same_files(left, right)
    write_json(right / "tokenizer.json", word_level(["<unk>", "cat"]))
    write_json(right / "added_tokens.json", {"<pad>": 2})
    assert not same_files(left, right)


def test_a_chat_template_in_each_of_its_places(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": named})
    assert read_template(tmp_path) == "D"
    write_json(tmp_path / "chat_template.json", {"chat_template": "J"})
    assert read_template(tmp_path) == "J"
    (tmp_path / "chat_template.jinja").write_text("{{ x }}\n")
    assert read_template(tmp_path) == "{{ x }}\n"
    assert same_template("a\n", "a")
    assert same_template(None, "")
    assert not same_template("a", "b")
