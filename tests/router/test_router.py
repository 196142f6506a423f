"""Routers find kinds of texts again, in closed form and the same each time."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.calibrate.texts import Text
from mergekit_lite.cli.main import main
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.router import (
    SCHEMA,
    choose_models,
    fit_router,
    held_out_split,
    load_router,
)
from mergekit_lite.router.features import Ngrams
from mergekit_lite.router.fit import _solve, labelled

WORDS = {
    "sea": ["ship", "wave", "anchor", "sail", "harbour", "tide"],
    "wood": ["tree", "leaf", "root", "moss", "fern", "bark"],
    "town": ["street", "tram", "square", "lamp", "bridge", "market"],
}
MODELS = {"sea": "./sailor", "wood": "./forester", "town": "./forester"}


def texts(count: int = 30, seed: int = 0) -> list[tuple[str, str]]:
    draw = np.random.default_rng(seed)
    return [
        (label, "the " + " and the ".join(draw.choice(words, 4)))
        for label, words in WORDS.items()
        for _ in range(count)
    ]


def test_kinds_of_texts_are_found_again() -> None:
    fitted = fit_router(texts(), MODELS, texts(20, seed=1))
    assert fitted.held_out.right == fitted.held_out.texts == 60
    choice = fitted.router.route("A SHIP  on the\nwave")
    assert (choice.label, choice.model) == ("sea", "./sailor")
    assert choice.scores["sea"] > 0.5 > choice.scores["wood"]


def test_a_label_of_few_texts_counts_as_much() -> None:
    few = [pair for pair in texts(40) if pair[0] != "sea"] + texts(3, seed=5)[:3]
    fitted = fit_router(few, MODELS, texts(20, seed=1))
    assert fitted.held_out.right >= 57
    bias = dict(zip(fitted.router.labels, fitted.router.bias, strict=True))
    nothing = fitted.router.route("")
    assert nothing.scores == pytest.approx(bias)


def test_both_ways_of_solving_agree_with_the_normal_equations() -> None:
    draw = np.random.default_rng(3)
    for rows, columns in ((5, 9), (9, 5)):
        seen, wanted = draw.standard_normal((rows, columns)), np.eye(3)[np.arange(rows) % 3]
        share = draw.uniform(0.5, 2, rows)
        weights, bias = _solve(seen, wanted, share, 0.1)
        center = share @ seen / share.sum()
        penalty = 0.1 * (share[:, None] * (seen - center) ** 2).sum() / rows
        # At the minimum every derivative is zero.
        apart = share[:, None] * (seen @ weights.T + bias - wanted)
        assert np.allclose(apart.sum(0), 0, atol=1e-10)
        assert np.allclose((seen - center).T @ apart + penalty * weights.T, 0, atol=1e-10)


def test_runs_of_bytes_by_hand() -> None:
    one = Ngrams((1,), 1 << 16).of("aab")
    # Space, a, a, b, space: two runs twice, one once; weights log 3, log 3, log 2.
    found = sorted(abs(one[one != 0]))
    length = (2 * np.log(3) ** 2 + np.log(2) ** 2) ** 0.5
    assert found == pytest.approx([np.log(2) / length, *[np.log(3) / length] * 2])


@given(st.text(max_size=60))
def test_vectors_do_not_depend_on_case_and_space(text: str) -> None:
    features = Ngrams((1, 2, 3), 256)
    vector = features.of(text)
    assert np.array_equal(vector, features.of(f"  {text.casefold()}\n"))
    assert np.linalg.norm(vector) == pytest.approx(1) or not vector.any()


def test_the_file_says_the_same(tmp_path: Path) -> None:
    fitted = fit_router(texts(), MODELS, texts(5, seed=1))
    again = fit_router(texts(), MODELS, texts(5, seed=1))
    content = fitted.router.text({"texts": 15, "right": 15})
    assert content == again.router.text({"texts": 15, "right": 15})
    jsonschema.validate(json.loads(content), SCHEMA)
    path = tmp_path / "router.json"
    path.write_text(content)
    loaded = load_router(path)
    for _, text in texts(5, seed=2):
        here, there = fitted.router.route(text), loaded.route(text)
        assert (here.label, here.model) == (there.label, there.model)
        assert there.scores == pytest.approx(here.scores, abs=1e-4)


def test_what_a_file_lacks_is_told(tmp_path: Path) -> None:
    path = tmp_path / "router.json"
    data = json.loads(fit_router(texts(), MODELS, texts(5, seed=1)).router.text())
    del data["models"]["sea"]
    data["weights"]["town"] = [1.0]
    path.write_text(json.dumps(data))
    with pytest.raises(DataError) as caught:
        load_router(path)
    told = str(caught.value)
    assert "label `sea` has no model" in told
    assert "weights of label `town` are not 8192 numbers" in told
    path.write_text("[]")
    with pytest.raises(DataError, match="not a router file"):
        load_router(path)


def test_what_cannot_be_fitted_is_told() -> None:
    with pytest.raises(RecipeError) as caught:
        fit_router(texts(), {"sea": "a", "wod": "b", "town": "c"}, [("woods", "x")])
    told = str(caught.value)
    assert "label `wood` has no model" in told
    assert "model of label `wod`" in told
    assert "did you mean `wood`?" in told
    assert "held-out texts of label `woods`" in told
    with pytest.raises(RecipeError, match="nothing to choose between"):
        fit_router([("sea", "x")], {"sea": "a"}, [("sea", "x")])
    with pytest.raises(RecipeError, match="no text is held out"):
        fit_router(texts(), MODELS, [])


def test_a_text_falls_on_one_side() -> None:
    everything = texts(100)
    kept, held = held_out_split(everything, 0.25)
    assert len(kept) + len(held) == 300
    assert 0.15 < len(held) / 300 < 0.35
    assert not {text for _, text in kept} & {text for _, text in held}
    assert held_out_split(everything[::-1], 0.25)[1] == held[::-1]


def test_running_texts_are_cut_at_line_ends() -> None:
    lines = [f"line {number} " + "x" * 90 for number in range(20)]
    found = labelled([Text("\n".join(lines), "sea", "here", is_running=True)])
    assert len(found) > 2
    assert all(label == "sea" for label, _ in found)
    assert "".join(piece for _, piece in found).split("\n")[:-1] == lines


def test_models_are_chosen_within_what_memory_holds() -> None:
    scores = {
        "sea": {"a": 0.9, "b": 0.5, "c": 0.6},
        "wood": {"a": 0.1, "b": 0.8, "c": 0.7},
        "town": {"a": 0.2, "b": 0.3, "c": 0.6},
    }
    assert choose_models(scores) == {"sea": "a", "wood": "b", "town": "c"}
    # a and c: 0.9 + 0.7 + 0.6; c alone: 0.6 + 0.7 + 0.6.
    assert choose_models(scores, 2) == {"sea": "a", "wood": "c", "town": "c"}
    assert choose_models(scores, 1) == {"sea": "c", "wood": "c", "town": "c"}
    with pytest.raises(RecipeError, match="`town` has no score of model `c`"):
        choose_models({**scores, "town": {"a": 1.0, "b": 0.0}})


def test_the_verbs(tmp_path: Path) -> None:
    for label in WORDS:
        lines = [json.dumps({"text": text}) for own, text in texts(40) if own == label]
        (tmp_path / f"{label}.jsonl").write_text("\n".join(lines))
    out = tmp_path / "router.json"
    data = [word for label in WORDS for word in ("--data", str(tmp_path / f"{label}.jsonl"))]
    models = [word for pair in MODELS.items() for word in ("--model", "=".join(pair))]
    done = CliRunner().invoke(main, ["moe", "fit-router", *data, *models, "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert "100.0 %" in done.output
    assert json.loads(out.read_text())["held_out"]["texts"] > 10
    said = CliRunner().invoke(main, ["moe", "route", str(out), "moss on the bark of the tree"])
    assert said.output == "wood\t./forester\n"
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({label: {"a": 0.5, "b": 0.4} for label in WORDS}))
    chosen = ["--scores", str(scores), "--most-models", "1", "-o", str(out), "--json"]
    done = CliRunner().invoke(main, ["moe", "fit-router", *data, *chosen])
    assert done.exit_code == 0, done.output
    assert set(json.loads(out.read_text())["models"].values()) == {"a"}
    both = CliRunner().invoke(main, ["moe", "fit-router", *data, *models, *chosen])
    assert both.exit_code == 2
    assert "give one" in str(both.output)
