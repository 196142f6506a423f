"""Unions of vocabularies, tokenizers of experts, and rows for single tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mergekit_lite
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.tokenizer import document, read
from tests.checkpoints import read_weights, write_json
from tests.tokenizer.tokenizers import bpe
from tests.vocabulary.models import (
    EMBEDDING,
    HEAD,
    WORDS,
    change,
    copy_of,
    logits,
    merge,
    model,
    require_sound,
    tokens,
)

BOTH = ("math", "code")


def rows_of(folder: Path, name: str = EMBEDDING) -> dict[str, torch.Tensor]:
    """Return token -> its row."""
    value = read_weights(folder)[name]
    return {token: value[row] for token, row in tokens(folder).items()}


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A base, `math` with <a> and <b>, `code` with <b> and <c>; untied."""
    model(tmp_path / "base", tied=False)
    copy_of(tmp_path / "base", tmp_path / "math", more=["<a>", "<b>"], seed=1, tied=False)
    copy_of(tmp_path / "base", tmp_path / "code", more=["<b>", "<c>"], seed=2, rows=16, tied=False)
    return tmp_path


def test_a_union_has_every_token_and_its_row(three: Path) -> None:
    merge(three, experts=BOTH, vocab="union")
    require_sound(three / "out")
    out, math, code = (rows_of(three / name) for name in ("out", "math", "code"))
    assert list(out) == [*WORDS, "<a>", "<b>", "<c>"]
    assert torch.equal(out["<a>"], math["<a>"])
    assert torch.equal(out["<c>"], code["<c>"])
    # Half of each expert's difference to the mean of both is nothing.
    torch.testing.assert_close(out["<b>"], (math["<b>"] + code["<b>"]) / 2)


def test_a_union_loads_and_computes_what_its_parts_do(three: Path) -> None:
    merge(three, experts=BOTH, tokenizer={"source": "union"})
    out, math = logits(three / "out", ["cat", "<a>"]), logits(three / "math", ["cat", "<a>"])
    base, more = logits(three / "base", ["cat", "hen"]), logits(three / "out", ["cat", "hen"])
    for token in WORDS:
        torch.testing.assert_close(more[token], base[token], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(out[token], math[token], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out["<a>"], math["<a>"], rtol=1e-5, atol=1e-6)

    from transformers import AutoTokenizer

    united = AutoTokenizer.from_pretrained(three / "out")
    assert united("cat<b>hen<c>")["input_ids"] == [3, 9, 6, 10]


def test_a_union_in_means_of_weights_is_what_those_say_that_have_the_token(three: Path) -> None:
    merge(three, experts=BOTH, vocab="union", steps=["linear"])
    out, math, code = (rows_of(three / name, HEAD) for name in ("out", "math", "code"))
    torch.testing.assert_close(out["<a>"], math["<a>"])
    torch.testing.assert_close(out["<b>"], (math["<b>"] + code["<b>"]) / 2)


def test_a_union_with_nothing_new_is_the_base_byte_for_byte(tmp_path: Path) -> None:
    model(tmp_path / "base")
    copy_of(tmp_path / "base", tmp_path / "math")
    plan = merge(tmp_path, vocab="union")
    assert (plan.row_maps, plan.tokenizer) == ({}, {})
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        written = (tmp_path / "out" / file).read_bytes()
        assert written == (tmp_path / "base" / file).read_bytes() or file == "config.json"


def test_each_tokenizer_is_parsed_once(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    monkeypatch.setattr(read, "parsed", lambda raw: parsed.append(len(raw)) or document.parsed(raw))
    merge(three, experts=BOTH, vocab="union")
    assert len(parsed) == 3


def test_a_tokenizer_that_changed_since_the_plan_is_not_added_to(three: Path) -> None:
    expert = {"model": str(three / "math"), "weight": 0.5}
    recipe = {"base": str(three / "base"), "experts": {"math": expert}, "vocab": "union"}
    plan = mergekit_lite.plan({**recipe, "steps": ["task_arithmetic"]})
    file = three / "base" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(DataError, match="no longer what it was when the merge was planned"):
        mergekit_lite.run(plan, three / "out")
    assert not (three / "out").exists()


def test_older_files_of_the_tokenizer_agree_with_the_union(tmp_path: Path) -> None:
    model(tmp_path / "base")
    copy_of(tmp_path / "base", tmp_path / "math", more=["<a>"])
    for name, letters in (("base", "ab"), ("math", "abc")):
        data = bpe(letters, [("a", "b")], [("<s>", len(letters) + 1)])
        write_json(tmp_path / name / "tokenizer.json", data)
        change(tmp_path / name, embedding=torch.ones(len(letters) + 2, 32))
    write_json(tmp_path / "base" / "vocab.json", {"a": 0, "b": 1, "ab": 2})
    write_json(tmp_path / "base" / "added_tokens.json", {"<s>": 3})
    (tmp_path / "base" / "merges.txt").write_text("#version: 0.2\na b\n")
    settings = {"added_tokens_decoder": {"3": {"content": "<s>", "special": True}}}
    write_json(tmp_path / "base" / "tokenizer_config.json", settings)
    merge(tmp_path, vocab="union")
    out = tmp_path / "out"
    vocab = {"a": 0, "b": 1, "ab": 2, "<s>": 3, "c": 4}
    assert tokens(out) == vocab
    assert json.loads((out / "vocab.json").read_text()) == vocab
    assert (out / "merges.txt").read_text() == "#version: 0.2\na b\n"


def test_what_cannot_be_united_is_refused_by_name(tmp_path: Path) -> None:
    model(tmp_path / "base")
    model(tmp_path / "math")
    write_json(tmp_path / "math" / "tokenizer.json", bpe("abcdefg", [("a", "b")]))
    with pytest.raises(RecipeError) as error:
        merge(tmp_path, vocab="union")
    assert "expert `math` cannot be united with the base's: it is of the kind BPE" in str(
        error.value
    )
    assert "use `vocab: base_rows`" in str(error.value)
    (tmp_path / "math" / "tokenizer.json").unlink()
    with pytest.raises(RecipeError, match="no tokenizer files, so its tokens cannot be united"):
        merge(tmp_path, vocab="union")


def test_the_tokenizer_of_an_expert(tmp_path: Path) -> None:
    model(tmp_path / "base", more=["<b>"])
    ids = {word: (3 * n + 2) % len(WORDS) for n, word in enumerate(WORDS)}
    copy_of(tmp_path / "base", tmp_path / "math", ids=ids, more=["<a>"], rows=12)
    config = json.loads((tmp_path / "math" / "config.json").read_text())
    del config["eos_token_id"]
    config["bos_token_id"] = ids["<s>"]
    write_json(tmp_path / "math" / "config.json", config)
    write_json(tmp_path / "math" / "generation_config.json", {"eos_token_id": [ids["</s>"], 8]})
    plan = merge(tmp_path, tokenizer={"source": "math"})
    assert any("leaves out 1 token of the base: `<b>`" in w for w in plan.warnings)
    out = tmp_path / "out"
    require_sound(out)
    assert (out / "tokenizer.json").read_bytes() == (
        tmp_path / "math" / "tokenizer.json"
    ).read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (ids["<s>"], ids["</s>"])
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"bos_token_id": ids["<s>"], "eos_token_id": [ids["</s>"], 8]}
    same, math = logits(out, ["cat", "<a>"]), logits(tmp_path / "math", ["cat", "<a>"])
    for token in (*WORDS, "<a>"):
        torch.testing.assert_close(same[token], math[token], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "row"),
    [
        ("math", lambda base, math, code: math["<b>"]),
        ("zero", lambda base, math, code: torch.zeros(32)),
        ({"kind": "zero"}, lambda base, math, code: torch.zeros(32)),
        ({"model": "base", "token": "cat"}, lambda base, math, code: base["cat"]),
        ({"model": "code", "token_id": 4}, lambda base, math, code: code["dog"]),
    ],
)
def test_a_forced_source_gives_the_row_of_a_token(three: Path, source: Any, row: Any) -> None:
    wish = {"source": "union", "tokens": {"<b>": {"source": source, "force": True}}}
    merge(three, experts=BOTH, tokenizer=wish)
    base, math, code = (rows_of(three / name) for name in ("base", *BOTH))
    assert torch.equal(rows_of(three / "out")["<b>"], row(base, math, code))


def test_a_source_stands_in_only_for_models_without_the_token(three: Path) -> None:
    wish = {"source": "union", "tokens": {"<b>": {"source": "math"}}}
    merge(three, experts=BOTH, tokenizer=wish)
    out, math, code = (rows_of(three / name)["<b>"] for name in ("out", *BOTH))
    torch.testing.assert_close(out, math + (code - math) / 2)


def test_tokens_that_no_model_has_can_be_added(tmp_path: Path) -> None:
    model(tmp_path / "base")
    copy_of(tmp_path / "base", tmp_path / "math")
    wish = {"tokens": {"<tool>": {"source": {"model": "base", "token": "</s>"}}, "<new>": {}}}
    plan = merge(tmp_path, tokenizer=wish)
    assert any("no model has a row for 1 token (`<new>`)" in w for w in plan.warnings)
    require_sound(tmp_path / "out")
    out, base = rows_of(tmp_path / "out"), rows_of(tmp_path / "base")
    assert list(out) == [*WORDS, "<tool>", "<new>"]
    assert torch.equal(out["<tool>"], base["</s>"])
    mean = torch.stack([*base.values(), base["</s>"]]).double().mean(0).float()
    torch.testing.assert_close(out["<new>"], mean)


def test_a_source_that_is_not_there_is_refused(three: Path) -> None:
    wish = {"tokens": {"<a>": {"source": {"model": "code", "token": "<a>"}}, "<x>": "math"}}
    with pytest.raises(RecipeError) as error:
        merge(three, experts=BOTH, tokenizer={"source": "union", **wish})
    assert "`code` has no token `<a>`, which `<a>` is to be taken from" in str(error.value)
    assert "`math` has no token `<x>`" in str(error.value)


def test_rows_are_padded_to_a_multiple(tmp_path: Path) -> None:
    model(tmp_path / "base", tied=False)
    copy_of(tmp_path / "base", tmp_path / "math", more=["<a>"], tied=False)
    merge(tmp_path, vocab="union", tokenizer={"pad_to_multiple_of": 64})
    require_sound(tmp_path / "out")
    for name in (EMBEDDING, HEAD):
        out = read_weights(tmp_path / "out")[name]
        assert out.shape == (64, 32)
        math = read_weights(tmp_path / "math")[name]
        torch.testing.assert_close(out[:9], math)
        torch.testing.assert_close(out[9:], math.double().mean(0).float().expand(55, 32))
    words = ["cat", "<a>"]
    out, math = logits(tmp_path / "out", words), logits(tmp_path / "math", words)
    torch.testing.assert_close(out["hen"], math["hen"], rtol=1e-5, atol=1e-6)


def test_padding_alone_needs_no_rule(tmp_path: Path) -> None:
    model(tmp_path / "base")
    copy_of(tmp_path / "base", tmp_path / "math")
    merge(tmp_path, tokenizer={"pad_to_multiple_of": 5})
    require_sound(tmp_path / "out")
    assert read_weights(tmp_path / "out")[EMBEDDING].shape == (10, 32)
