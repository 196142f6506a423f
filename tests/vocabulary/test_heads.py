"""All four combinations of tied and untied heads, by the logits of what they give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mergekit_lite.errors import RecipeError
from tests.checkpoints import read_weights, write_json
from tests.vocabulary.models import EMBEDDING, HEAD, WORDS, change, logits, merge, model

TEXT = ["<s>", "cat", "hen"]


def pair(root: Path, base_tied: bool, expert_tied: bool) -> None:
    """Write a base and an expert that differ in embedding and head alone."""
    model(root / "base", tied=base_tied)
    model(root / "math", tied=expert_tied)
    found = read_weights(root / "math")
    change(root / "math", embedding=found[EMBEDDING] + 0.1)
    if not expert_tied:
        change(root / "math", head=read_weights(root / "math")[EMBEDDING].flip(0))


def effective_head(folder: Path) -> torch.Tensor:
    """Return the head that a loader uses."""
    tied = json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    return read_weights(folder)[EMBEDDING if tied else HEAD]


def expected(root: Path, head: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the logits of a model made by hand: the mean of the embeddings, and a head."""
    model(root / "byhand", tied=False)
    both = [read_weights(root / name)[EMBEDDING] for name in ("base", "math")]
    body = {k: v for k, v in read_weights(root / "base").items() if k != HEAD}
    change(root / "byhand", **body)
    change(root / "byhand", embedding=(both[0] + both[1]) / 2, head=head)
    return logits(root / "byhand", TEXT)


def close(root: Path, head: torch.Tensor) -> None:
    out, by_hand = logits(root / "out", TEXT), expected(root, head)
    for word in WORDS:
        torch.testing.assert_close(out[word], by_hand[word], rtol=1e-4, atol=1e-5)


def mean_head(root: Path) -> torch.Tensor:
    return (effective_head(root / "base") + effective_head(root / "math")) / 2


def says(root: Path, tied: bool) -> None:
    config = json.loads((root / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is tied
    assert (HEAD in read_weights(root / "out")) is not tied


@pytest.mark.parametrize("tied", [True, False])
def test_both_alike(tmp_path: Path, tied: bool) -> None:
    pair(tmp_path, tied, tied)
    merge(tmp_path)
    says(tmp_path, tied)
    close(tmp_path, mean_head(tmp_path))


def test_a_tied_expert_in_an_untied_base(tmp_path: Path) -> None:
    pair(tmp_path, base_tied=False, expert_tied=True)
    plan = merge(tmp_path)
    says(tmp_path, tied=False)
    assert any(
        "`model.embed_tokens.weight` stands for `lm_head.weight`" in w for w in plan.warnings
    )
    close(tmp_path, mean_head(tmp_path))


def test_an_untied_expert_in_a_tied_base_needs_a_choice(tmp_path: Path) -> None:
    pair(tmp_path, base_tied=True, expert_tied=False)
    with pytest.raises(RecipeError) as error:
        merge(tmp_path)
    assert "expert `math` has a head of its own (`lm_head.weight`)" in str(error.value)
    assert "`head: untie`" in str(error.value)
    assert "`head: tie`" in str(error.value)


def test_an_untied_expert_unties_the_result(tmp_path: Path) -> None:
    pair(tmp_path, base_tied=True, expert_tied=False)
    plan = merge(tmp_path, head="untie")
    says(tmp_path, tied=False)
    assert any("the result has a head of its own, 1,024 bytes more" in w for w in plan.warnings)
    close(tmp_path, mean_head(tmp_path))


def test_an_untied_expert_ties_its_head_to_the_bases_embedding(tmp_path: Path) -> None:
    pair(tmp_path, base_tied=True, expert_tied=False)
    plan = merge(tmp_path, head="tie")
    says(tmp_path, tied=True)
    assert any("`lm_head.weight` of expert `math` is left out" in w for w in plan.warnings)
    close(tmp_path, read_weights(tmp_path / "out")[EMBEDDING])


@pytest.mark.parametrize("expert_tied", [True, False])
def test_an_untied_base_can_be_tied(tmp_path: Path, expert_tied: bool) -> None:
    pair(tmp_path, base_tied=False, expert_tied=expert_tied)
    plan = merge(tmp_path, head="tie")
    says(tmp_path, tied=True)
    assert any("head: tie: `lm_head.weight` of the base is left out" in w for w in plan.warnings)
    close(tmp_path, read_weights(tmp_path / "out")[EMBEDDING])


@pytest.mark.parametrize("expert_tied", [True, False])
def test_an_untied_base_needs_not_be_untied(tmp_path: Path, expert_tied: bool) -> None:
    pair(tmp_path, base_tied=False, expert_tied=expert_tied)
    merge(tmp_path, head="untie")
    says(tmp_path, tied=False)
    close(tmp_path, mean_head(tmp_path))


def test_a_stored_head_that_loaders_ignore_is_ignored(tmp_path: Path) -> None:
    """The expert stores a stale head, and its config ties: loaders use its embedding."""
    pair(tmp_path, base_tied=False, expert_tied=False)
    config = json.loads((tmp_path / "math" / "config.json").read_text())
    write_json(tmp_path / "math" / "config.json", {**config, "tie_word_embeddings": True})
    merge(tmp_path)
    says(tmp_path, tied=False)
    close(tmp_path, mean_head(tmp_path))


def test_heads_and_vocabularies_may_both_differ(tmp_path: Path) -> None:
    model(tmp_path / "base", tied=True)
    model(tmp_path / "math", tied=False, more=["<a>"], rows=12)
    merge(tmp_path, head="untie", vocab="union")
    base, math, out = (read_weights(tmp_path / name) for name in ("base", "math", "out"))
    assert out[HEAD].shape == out[EMBEDDING].shape == (9, 32)
    torch.testing.assert_close(out[HEAD][:8], (base[EMBEDDING] + math[HEAD][:8]) / 2)
    assert torch.equal(out[HEAD][8], math[HEAD][8])
    logits(tmp_path / "out", ["cat", "<a>"])
