"""What counts as a change: of bytes, of sums, of scores, and which line answers for it."""

from __future__ import annotations

from pathlib import Path

import changelog
import numpy as np
import prints
import pytest
import regression
import torch
from in_memory import best_scale
from intervals import Windows, difference, mean
from safetensors.torch import save_file

TEXT = """# Changelog

## [Unreleased]

### Added

- A thing.

### Numerics

- `ties` drops entries
  that tie.
- `sce` adds by blocks.

## [0.1]

### Numerics

- First release.
"""


def folder_of(path: Path, **tensors: torch.Tensor) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    return path


def test_entries_under_numerics_are_read_from_every_release() -> None:
    assert changelog.numerics(TEXT) == [
        "`ties` drops entries that tie.",
        "`sce` adds by blocks.",
        "First release.",
    ]


def test_a_line_is_found_by_its_beginning() -> None:
    assert changelog.entry("`sce`", TEXT) == "`sce` adds by blocks."


@pytest.mark.parametrize(("beginning", "what"), [("A thing", "no line"), ("`", "2 lines")])
def test_a_beginning_of_no_line_or_several_is_refused(beginning: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        changelog.entry(beginning, TEXT)


def test_a_digest_sees_bits_names_and_shapes(tmp_path: Path) -> None:
    value = torch.tensor([1.0, 0.0], dtype=torch.bfloat16)
    folders = [
        folder_of(tmp_path / "a", w=value),
        folder_of(tmp_path / "same", w=value.clone()),
        folder_of(tmp_path / "sign", w=value * torch.tensor([1, -1], dtype=torch.bfloat16)),
        folder_of(tmp_path / "name", v=value),
        folder_of(tmp_path / "shape", w=value.reshape(2, 1)),
    ]
    first, same, *others = map(prints.digest, folders)
    assert same == first
    assert len({first, *others}) == 4


def test_sums_are_of_what_was_changed(tmp_path: Path) -> None:
    base = folder_of(tmp_path / "base", **{"model.layers.0.q.weight": torch.ones(2)})
    merged = folder_of(
        tmp_path / "out",
        **{
            "model.layers.0.q.weight": torch.tensor([4.0, 1.0]),
            "model.layers.1.q.weight": torch.tensor([0.0, 4.0]),
        },
    )
    found = prints.sums(merged, base)
    assert list(found) == ["model.layers.q.weight"]
    norm, signed = found["model.layers.q.weight"]
    assert norm == 5
    assert signed in (7, 1, -1, -7)


def test_sums_may_differ_by_rounding_and_not_by_a_fault() -> None:
    then = {"q": [10.0, 3.0]}
    assert prints.unlike({"q": [10.01, 3.01]}, then) == []
    assert prints.unlike({"q": [10.1, 3.0]}, then) == ["q"]
    assert prints.unlike({"q": [10.0, -3.0]}, then) == ["q"]
    assert prints.unlike({"k": [10.0, 3.0]}, then) == ["k", "q"]


def test_a_change_is_told_by_what_is_held() -> None:
    assert regression.change({"sha256": "a"}, {"sha256": "a", "numerics": "x"}) == ""
    assert regression.change({"sha256": "a"}, {"sha256": "b"}) == "other bytes"
    assert regression.change({"sha256": "a"}, None) == "nothing is stored of it"
    assert (
        regression.change({"sums": {}}, {"sha256": "a"}) == "it is held to another kind of number"
    )
    found = regression.change({"sums": {"q": [1.0, 0.0]}}, {"sums": {"q": [2.0, 0.0]}})
    assert found == "other values in q"


def test_a_line_that_left_the_changelog_is_missed() -> None:
    known = {"bytes": {"a": {"sha256": "", "numerics": "`sce` adds by blocks."}, "b": {}}}
    assert regression.lines_missing(known, TEXT) == []
    assert "a: no line" in regression.lines_missing(known, "# Changelog")[0]


@pytest.mark.parametrize(
    ("text", "is_exact"),
    [
        ("steps: [ties]", True),
        ("steps: [iso_c]", False),
        ("# instead of iso_c\nsteps: [ties]", True),
        ("output: {lora: {method: core_space}}", False),
    ],
)
def test_bytes_are_promised_of_all_but_methods_of_matrices(text: str, is_exact: bool) -> None:
    assert regression.Entry("a", text).is_exact is is_exact


def of_bits(*bits: float) -> Windows:
    return Windows(bits, (10,) * len(bits))


def test_a_score_drifts_where_its_whole_interval_is_away() -> None:
    then = {"german": of_bits(10, 12, 14, 16)}
    assert regression.drift(then, then) == ""
    assert regression.drift({"german": of_bits(10.01, 12.01, 14, 16)}, then) == ""
    # One window much worse: drawn again without it, nothing has moved.
    assert regression.drift({"german": of_bits(10, 12, 14, 20)}, then) == ""
    assert "+0.050" in regression.drift({"german": of_bits(10.5, 12.5, 14.5, 16.5)}, then)
    assert "-0.050" in regression.drift({"german": of_bits(9.5, 11.5, 13.5, 15.5)}, then)


def test_a_mean_weighs_domains_alike_and_windows_by_their_bytes() -> None:
    scores = {"german": Windows((10.0, 40.0), (10, 20)), "french": of_bits(30)}
    assert mean(scores) == pytest.approx((50 / 30 + 3) / 2)


def test_a_difference_is_paired() -> None:
    better = {"german": of_bits(*range(10, 30))}
    worse = {"german": of_bits(*(value + 1 for value in range(10, 30)))}
    found = difference(worse, better)
    # Windows differ by far more than the models, which differ by the same everywhere.
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.is_apart
    assert not difference(better, better).is_apart


def test_the_best_scale_is_the_vertex_of_a_parabola_or_beyond_the_edge() -> None:
    best, tried = best_scale(lambda scale: (np.log2(scale) - 0.3) ** 2)
    assert best == pytest.approx(2**0.3, abs=0.01)
    assert len(tried) == 4
    best, tried = best_scale(lambda scale: (np.log2(scale) - 2.1) ** 2)
    assert best == pytest.approx(2**2.1, abs=0.01)
    assert set(tried) == {0.5, 1, 2, 4, 8, best}
