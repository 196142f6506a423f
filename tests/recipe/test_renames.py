"""Renaming of tensors by pattern."""

from __future__ import annotations

import pytest

from mergekit_lite.recipe.renames import Renaming, in_scope, renamer


@pytest.mark.parametrize(
    ("pattern", "to", "name", "made"),
    [
        ("a.*", "b.*", "a.0.w", "b.0.w"),
        ("a.*", "b.*", "x.a.0.w", None),
        ("*.attn.*", "*.self_attn.*", "h.3.attn.q", "h.3.self_attn.q"),
        ("*", "model.*", "norm.weight", "model.norm.weight"),
        ("w?", "v?", "w1", "v1"),
        ("a.b", "c", "a.b", "c"),
        ("a.b", "c", "axb", None),
        ("*.x", "gone", "1.x", "gone"),
        (r"regex:^h\.(\d+)\.", r"layers.\1.", "h.12.mlp", "layers.12.mlp"),
        (r"regex:\.gamma$", ".weight", "ln.gamma", "ln.weight"),
        (r"regex:\.gamma$", ".weight", "ln.beta", None),
    ],
)
def test_one_rule(pattern: str, to: str, name: str, made: str | None) -> None:
    assert renamer(pattern, to)(name) == made


@pytest.mark.parametrize(
    ("pattern", "to"),
    [("a.*", "*.*"), ("regex:(", "x"), (r"regex:a", r"\2"), ("regex:a", r"\g<n>")],
)
def test_rules_that_cannot_be_read(pattern: str, to: str) -> None:
    with pytest.raises(ValueError, match="`"):
        renamer(pattern, to)


def test_the_first_rule_that_fits_is_applied_alone() -> None:
    renaming = Renaming({"a.*": "b.*", "b.*": "c.*", "z": "y"})
    assert [renaming(name) for name in ("a.1", "b.1", "q")] == ["b.1", "c.1", "q"]
    assert renaming.used == {"a.*", "b.*"}


def test_a_scope_is_a_pattern_or_a_module() -> None:
    assert in_scope("model.language_model.norm.weight", ["model.language_model"])
    assert in_scope("model.language_model.norm.weight", ["*.norm.*"])
    assert not in_scope("model.language_model_head.weight", ["model.language_model"])
    assert not in_scope("model.visual.norm.weight", ["model.language_model", "lm_head"])
