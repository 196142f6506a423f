"""What a sample of the weights says of a patch that is carried to a new base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mergekit_lite
from mergekit_lite.api import load
from mergekit_lite.engine.ported import MOST_ENTRIES, relation_of, warnings_of_ported
from mergekit_lite.plan.build import prepare

SHAPES = {"a": (30, 40), "b": (500,), "c": (300, 300)}


def saved(root: Path, drift: float, patch: float, turn: float = 0.0) -> str:
    """Write an old base, a fine-tune of it and a new base; return the recipe's path."""
    generator = torch.Generator().manual_seed(3)

    def noise() -> dict[str, torch.Tensor]:
        return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    old, moved, learnt = noise(), noise(), noise()
    new = {n: (1 - turn) * old[n] + drift * moved[n] for n in SHAPES}
    models = {"old": old, "new": new, "tuned": {n: old[n] + patch * learnt[n] for n in SHAPES}}
    for name, tensors in models.items():
        (root / name).mkdir()
        save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
    recipe = root / "recipe.yaml"
    recipe.write_text(
        "base: new\nexperts: {tuned: {model: tuned}, old: {model: old}}\n"
        "steps: [{port_patch: {from: tuned, old_base: old}}]\n"
    )
    return str(recipe)


def test_a_sample_has_the_norms_and_the_cosine_of_what_it_holds(tmp_path: Path) -> None:
    plan, models = prepare(load(saved(tmp_path, drift=0.5, patch=0.25)))
    seen = relation_of(plan, models, "tuned", "old")
    assert seen is not None
    # Of the largest tensor only the first entries, of the others all.
    assert seen.entries == 1200 + 500 + MOST_ENTRIES
    assert seen.patch / seen.entries**0.5 == pytest.approx(0.25, rel=0.01)
    assert seen.drift / seen.entries**0.5 == pytest.approx(0.5, rel=0.01)
    assert seen.cosine == pytest.approx(1 / 1.25**0.5, rel=0.01)


@pytest.mark.parametrize(
    ("drift", "patch", "turn", "told"),
    [
        (0.1, 0.05, 0.0, []),
        (0.1, 0.001, 0.0, ["small beside how far"]),
        (1.0, 0.5, 0.0, ["a cosine of 0.71"]),
        (1.0, 0.01, 1.0, ["a cosine of", "small beside"]),
    ],
)
def test_a_doubtful_patch_is_told(
    tmp_path: Path, drift: float, patch: float, turn: float, told: list[str]
) -> None:
    plan, models = prepare(load(saved(tmp_path, drift, patch, turn)))
    found = warnings_of_ported(plan, models)
    assert len(found) == len(told)
    assert all(part in text for part, text in zip(told, found, strict=True))


def test_a_run_says_so_once_and_keeps_it_in_its_report(tmp_path: Path) -> None:
    notes: list[str] = []
    recipe = saved(tmp_path, drift=0.1, patch=0.001)
    mergekit_lite.run(recipe, tmp_path / "out", emit=lambda event: notes.append(event.text))
    assert sum("small beside" in note for note in notes) == 1
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert sum("small beside" in warning for warning in report["warnings"]) == 1
