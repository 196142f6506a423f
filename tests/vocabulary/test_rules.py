"""What the three rules do, by the logits of what they give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mergekit_lite
from mergekit_lite.errors import RecipeError
from tests.checkpoints import read_weights, write_json
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

TEXT = ["<s>", "cat", "hen", "dog"]
RULES = ("base_rows", "common_rows", "union")


def refused(root: Path, **recipe: Any) -> str:
    with pytest.raises(RecipeError) as error:
        merge(root, **recipe)
    assert not (root / "out").exists()
    return str(error.value)


def same_logits(left: Path, right: Path) -> None:
    mine, theirs = logits(left, TEXT), logits(right, TEXT)
    for token in theirs:
        torch.testing.assert_close(mine[token], theirs[token], rtol=1e-5, atol=1e-6)


def test_without_a_rule_padding_is_named_and_the_rules_are_offered(tmp_path: Path) -> None:
    model(tmp_path / "base")
    copy_of(tmp_path / "base", tmp_path / "math", rows=len(WORDS) + 64)
    said = refused(tmp_path)
    assert "72 rows, the base 8: 64 rows more, padding only, the tokens are the same" in said
    assert all(f"`vocab: {rule}`" in said for rule in RULES)


def test_without_a_rule_real_tokens_are_named(tmp_path: Path) -> None:
    model(tmp_path / "base")
    copy_of(tmp_path / "base", tmp_path / "math", more=["<a>", "<b>"])
    said = refused(tmp_path)
    assert "10 rows, the base 8: real tokens differ" in said
    assert "2 tokens that the base lacks (`<a>`, `<b>`)" in said


def test_without_tokenizers_it_is_said_that_nobody_can_tell(tmp_path: Path) -> None:
    model(tmp_path / "base")
    copy_of(tmp_path / "base", tmp_path / "math", rows=72)
    (tmp_path / "math" / "tokenizer.json").unlink()
    assert "without tokenizer files padding cannot be told" in refused(tmp_path)


def test_other_ids_for_the_same_tokens_are_refused_though_the_shapes_are_equal(
    tmp_path: Path,
) -> None:
    model(tmp_path / "base")
    ids = {word: len(WORDS) - 1 - n for n, word in enumerate(WORDS)}
    copy_of(tmp_path / "base", tmp_path / "math", ids=ids)
    assert "real tokens differ: it has 8 tokens under other ids" in refused(tmp_path)
    plan = merge(tmp_path, compat="mergekit")
    assert any("rows are merged by number all the same" in w for w in plan.warnings)


def test_tokens_on_padding_rows_of_the_base_are_merged_with_a_warning(tmp_path: Path) -> None:
    model(tmp_path / "base", rows=16)
    copy_of(tmp_path / "base", tmp_path / "math", more=["<a>"], rows=16)
    (warning,) = merge(tmp_path).warnings
    assert "has 1 token that the base's tokenizer lacks (`<a>`)" in warning


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tied", [True, False])
def test_padding_of_an_expert_changes_nothing(tmp_path: Path, rule: str, tied: bool) -> None:
    model(tmp_path / "base", tied=tied)
    copy_of(tmp_path / "base", tmp_path / "math", rows=len(WORDS) + 64, tied=tied)
    merge(tmp_path, vocab=rule)
    require_sound(tmp_path / "out")
    same_logits(tmp_path / "out", tmp_path / "base")
    assert read_weights(tmp_path / "out")[EMBEDDING].shape[0] == len(WORDS)


@pytest.mark.parametrize("rule", RULES)
def test_padding_of_the_base_is_kept(tmp_path: Path, rule: str) -> None:
    model(tmp_path / "base", rows=len(WORDS) + 64)
    copy_of(tmp_path / "base", tmp_path / "math")
    merge(tmp_path, vocab=rule)
    require_sound(tmp_path / "out")
    base = read_weights(tmp_path / "base")
    assert torch.equal(read_weights(tmp_path / "out")[EMBEDDING][8:], base[EMBEDDING][8:])
    same_logits(tmp_path / "out", tmp_path / "base")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "step", ["task_arithmetic", {"linear": {"normalize": True}}, {"ties": {"density": 0.5}}]
)
def test_permuted_ids_are_matched_by_token(tmp_path: Path, rule: str, step: Any) -> None:
    model(tmp_path / "base", tied=False)
    ids = {word: (5 * n + 3) % len(WORDS) for n, word in enumerate(WORDS)}
    copy_of(tmp_path / "base", tmp_path / "math", ids=ids, tied=False)
    merge(tmp_path, vocab=rule, steps=[step])
    require_sound(tmp_path / "out")
    assert tokens(tmp_path / "out") == tokens(tmp_path / "base")
    same_logits(tmp_path / "out", tmp_path / "base")


def test_rows_are_added_token_by_token(tmp_path: Path) -> None:
    """The expert's row of each token is the base's plus one, at another number."""
    model(tmp_path / "base")
    ids = {word: (3 * n + 1) % len(WORDS) for n, word in enumerate(WORDS)}
    copy_of(tmp_path / "base", tmp_path / "math", ids=ids)
    change(tmp_path / "math", embedding=read_weights(tmp_path / "math")[EMBEDDING] + 1)
    merge(tmp_path, vocab="base_rows")
    expected = read_weights(tmp_path / "base")[EMBEDDING] + 0.5
    torch.testing.assert_close(read_weights(tmp_path / "out")[EMBEDDING], expected)


def test_base_rows_leave_out_tokens_of_experts_and_say_which(tmp_path: Path) -> None:
    model(tmp_path / "base", more=["<b>"])
    copy_of(tmp_path / "base", tmp_path / "math", more=["<a>", "<c>"])
    change(tmp_path / "math", embedding=read_weights(tmp_path / "math")[EMBEDDING] + 1)
    (warning,) = merge(tmp_path, vocab="base_rows").warnings
    assert "`vocab: base_rows` leaves out 2 tokens of expert `math`: `<a>`, `<c>`" in warning
    require_sound(tmp_path / "out")
    base, out = (read_weights(tmp_path / name)[EMBEDDING] for name in ("base", "out"))
    torch.testing.assert_close(out[:8], base[:8] + 0.5)
    assert torch.equal(out[8], base[8])  # the expert has no <b>, and changes nothing of it


def test_common_rows_merge_only_what_all_have(tmp_path: Path) -> None:
    model(tmp_path / "base", more=["<a>", "<b>"])
    copy_of(tmp_path / "base", tmp_path / "math", more=["<a>", "<b>"])
    copy_of(tmp_path / "base", tmp_path / "code", more=["<b>"])
    for name in ("math", "code"):
        change(tmp_path / name, embedding=read_weights(tmp_path / name)[EMBEDDING] + 1)
    both = {"experts": ("math", "code")}
    base = read_weights(tmp_path / "base")[EMBEDDING]
    merge(tmp_path, vocab="common_rows", **both)
    out = read_weights(tmp_path / "out")[EMBEDDING]
    assert torch.equal(out[8], base[8])
    torch.testing.assert_close(out[9], base[9] + 1)
    merge(tmp_path, "more", vocab="base_rows", **both)
    out = read_weights(tmp_path / "more")[EMBEDDING]
    torch.testing.assert_close(out[8], base[8] + 0.5)


def test_means_of_weights_take_the_base_where_an_expert_lacks_a_token(tmp_path: Path) -> None:
    model(tmp_path / "base", more=["<a>"])
    copy_of(tmp_path / "base", tmp_path / "math")
    change(tmp_path / "math", embedding=read_weights(tmp_path / "math")[EMBEDDING] + 1)
    merge(tmp_path, vocab="base_rows", steps=[{"linear": {"normalize": True}}])
    base, out = (read_weights(tmp_path / name)[EMBEDDING] for name in ("base", "out"))
    torch.testing.assert_close(out[:8], base[:8] + 1)
    torch.testing.assert_close(out[8], base[8])


def test_an_expert_taken_whole_still_gives_the_bases_rows(tmp_path: Path) -> None:
    model(tmp_path / "base")
    copy_of(tmp_path / "base", tmp_path / "math", more=["<a>"])
    rules = [{"match": {"role": "embedding"}, "take": "math"}]
    merge(tmp_path, vocab="base_rows", rules=rules)
    out = read_weights(tmp_path / "out")[EMBEDDING]
    assert torch.equal(out, read_weights(tmp_path / "math")[EMBEDDING][:8])


def test_rows_taken_from_the_base_need_no_rule(tmp_path: Path) -> None:
    model(tmp_path / "base", tied=False)
    copy_of(tmp_path / "base", tmp_path / "math", more=["<a>"], tied=False)
    keep = [{"match": {"role": role}, "take": "base"} for role in ("embedding", "head")]
    merge(tmp_path, rules=keep)
    require_sound(tmp_path / "out")
    assert torch.equal(read_weights(tmp_path / "out")[HEAD], read_weights(tmp_path / "base")[HEAD])


def test_a_base_with_ids_beyond_its_rows_is_refused_and_can_be_given_rows(tmp_path: Path) -> None:
    model(tmp_path / "base", more=["<pad>"], rows=8)
    copy_of(tmp_path / "base", tmp_path / "math", more=["<pad>"], rows=8)
    said = refused(tmp_path)
    assert "1 token without a row (`<pad>`)" in said
    assert "the embedding has 8 rows, the highest id is 8" in said
    plan = merge(tmp_path, vocab="base_rows")
    assert any("no model has a row for 1 token (`<pad>`)" in w for w in plan.warnings)
    require_sound(tmp_path / "out")
    out, base = (read_weights(tmp_path / name)[EMBEDDING] for name in ("out", "base"))
    torch.testing.assert_close(out[8], base.double().mean(0).float())


def test_the_same_bytes_whatever_the_tiles(tmp_path: Path) -> None:
    model(tmp_path / "base", dtype="bfloat16")
    ids = {word: (3 * n + 1) % len(WORDS) for n, word in enumerate(WORDS)}
    copy_of(tmp_path / "base", tmp_path / "math", ids=ids, dtype="bfloat16")
    copy_of(tmp_path / "base", tmp_path / "code", more=["<a>", "<b>"], rows=19)
    recipe = {"experts": ("math", "code"), "vocab": "union", "steps": ["ties"]}
    merge(tmp_path, **recipe)
    plan = mergekit_lite.plan(
        {
            "base": str(tmp_path / "base"),
            "experts": {n: {"model": str(tmp_path / n), "weight": 0.5} for n in recipe["experts"]},
            "steps": ["ties"],
            "vocab": "union",
            "output": {"dtype": "float32"},
        }
    )
    again = type(plan).from_json(plan.to_json())
    assert again.content_digest() == plan.content_digest()
    mergekit_lite.run(again, tmp_path / "again", threads=3, max_memory=130_000_000)
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()


def test_a_config_that_is_wrong_about_the_rows_is_put_right(tmp_path: Path) -> None:
    model(tmp_path / "base")
    copy_of(tmp_path / "base", tmp_path / "math")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    write_json(tmp_path / "base" / "config.json", {**config, "vocab_size": 256})
    plan = merge(tmp_path)
    assert any("says vocab_size 256" in w and "has 8 rows" in w for w in plan.warnings)
    require_sound(tmp_path / "out")


def test_verify_rechecks_rows_config_and_tokenizer(tmp_path: Path) -> None:
    from mergekit_lite.checkpoint import read_checkpoint
    from mergekit_lite.export.verify import verify
    from mergekit_lite.export.vocabulary import vocabulary_problems

    model(tmp_path / "base", tied=False)
    copy_of(tmp_path / "base", tmp_path / "math", more=["<a>"], tied=False)
    merge(tmp_path, vocab="union")
    assert verify(tmp_path / "out") == []
    out = tmp_path / "out"
    change(out, head=torch.zeros(8, 32))
    found = vocabulary_problems(out, read_checkpoint(out).tensors, {"vocab_size": 7})
    assert [(p.where, p.what) for p in found] == [
        ("config.json", "vocab_size is 7, `model.embed_tokens.weight` has 9 rows"),
        ("lm_head.weight", "has 8 rows, `model.embed_tokens.weight` has 9"),
    ]
    change(out, embedding=torch.zeros(8, 32))
    (problem,) = vocabulary_problems(out, read_checkpoint(out).tensors, {"vocab_size": 8})
    assert "`<a>` has the id 8, `model.embed_tokens.weight` has 8 rows" in problem.what
