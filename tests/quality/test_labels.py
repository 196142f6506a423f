"""Scores of models that give texts labels, and of vectors, held to what transformers computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import spearmanr

from mergekit_lite.cli.main import main
from mergekit_lite.errors import DataError
from mergekit_lite.quality.data import Texts, read_data
from mergekit_lite.quality.evaluate import evaluate
from mergekit_lite.quality.forward import Settings
from mergekit_lite.quality.labelled import Label, Labelled, Pair, Pairs
from mergekit_lite.quality.measures import measured
from mergekit_lite.quality.scores import ChoiceScore, Evaluation, PairScore, score_of, score_record
from mergekit_lite.quality.subjects import MERGE, parents, subject
from tests.calibrate.conftest import save_model

LABELS = Labelled(
    "mood",
    (
        Label("w4 w6 w8 w10", "", 0),
        Label("w5 w7", "", 2),
        Label("w12 w14 w16", "w20 w21", 1),
        Label("w31", "", "LABEL_2"),
    ),
)
PAIRS = Pairs(
    "sts",
    tuple(Pair(f"w{n} w{n + 3} w9", f"w{2 * n + 1} w9", float(n % 4)) for n in range(5, 14)),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("labels")
    for seed, name in enumerate(("one", "two")):
        save_model(home / name, "bert", seed, labels=3)
    save_model(home / "llama", "llama", labels=3)
    save_model(home / "words", "llama")
    return home


def scored(home: Path, name: str, *data: Any, **others: str) -> Evaluation:
    named = {key: str(home / other) for key, other in others.items()}
    mine = subject(MERGE, str(home / name))
    return evaluate(mine, parents(named), data, Settings(batch=12))


def run(folder: Path, text: str, other: str = "") -> tuple[Any, Any]:
    """Return the logits of one text by transformers, and the mean of its hidden states."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = tokenizer(text, other or None, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits[0]
        inside = {k: v for k, v in inputs.items() if k != "token_type_ids" or "bert" in str(model)}
        hidden = model.base_model(**inside).last_hidden_state[0]
    return logits, hidden.double().mean(0).numpy()


@pytest.mark.parametrize("name", ["one", "llama"])
def test_labels_are_those_of_transformers(home: Path, name: str) -> None:
    found = scored(home, name, LABELS).scores[MERGE]["mood"]
    assert isinstance(found, ChoiceScore)
    expected = [int(run(home / name, one.text, one.other)[0].argmax()) for one in LABELS.labels]
    assert found.chosen == tuple(expected)
    assert found.answers == (0, 2, 1, 2)


def test_classifiers_are_compared_label_by_label(home: Path) -> None:
    found = scored(home, "one", LABELS, two="two", same="one")
    like = found.likeness["two"]["mood"]
    for unit, one in enumerate(LABELS.labels):
        mine, vector = run(home / "one", one.text, one.other)
        theirs, other = run(home / "two", one.text, one.other)
        own, parent = torch.log_softmax(mine, 0), torch.log_softmax(theirs, 0)
        expected = float((parent.exp() * (parent - own)).sum())
        assert like.kl[unit] == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert like.agreed[unit] == int(mine.argmax() == theirs.argmax())
        cosine = vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)
        assert like.similarities[unit] == pytest.approx(cosine, rel=1e-4)
    assert found.likeness["same"]["mood"].similarity == pytest.approx(1.0)
    score, other_score = (found.scores[name]["mood"] for name in (MERGE, "two"))
    assert measured("flips", score, other_score).value <= 1 - score.accuracy  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["one", "words"])
def test_pairs_correlate_as_the_cosines_of_their_vectors_do(home: Path, name: str) -> None:
    found = scored(home, name, PAIRS, other="two" if name == "one" else "words")
    score = found.scores[MERGE]["sts"]
    assert isinstance(score, PairScore)
    if name == "one":
        for pair, cosine in zip(PAIRS.pairs, score.cosines, strict=True):
            one, other = (run(home / name, text)[1] for text in (pair.text, pair.other))
            expected = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            assert cosine == pytest.approx(expected, rel=1e-4)
    expected = spearmanr(score.cosines, score.similarities).statistic
    assert score.correlation == pytest.approx(expected)
    value = measured("correlation", score)
    assert value.value == pytest.approx(expected)
    assert value.low < value.value < value.high
    like = found.likeness["other"]["sts"]
    assert len(like.similarities) == 2 * len(PAIRS)
    assert like.tokens == ()
    assert measured("recovery", score, score).value == pytest.approx(1.0)
    assert score_of(json.loads(json.dumps(score_record(score)))) == score


@pytest.mark.parametrize(
    ("label", "said"),
    [(3, "`3` is none of them"), (-1, "`-1` is none"), ("happy", "`happy` is none of them")],
)
def test_labels_outside_the_head_are_refused(home: Path, label: int | str, said: str) -> None:
    data = Labelled("mood", (Label("w4", "", 0), Label("w5", "", label)))
    with pytest.raises(DataError, match=said) as caught:
        scored(home, "one", data)
    assert "0 (LABEL_0), 1 (LABEL_1), 2 (LABEL_2)" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("words", LABELS, "it holds labels, and `merge` gives texts none"),
        ("one", Texts("a", ("w4 w5",)), "it holds texts, and `merge` does not predict text"),
    ],
)
def test_data_of_another_kind_of_model_is_refused(
    home: Path, name: str, data: Any, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        scored(home, name, data)


def test_a_parent_without_a_head_is_named(home: Path) -> None:
    with pytest.raises(DataError, match="`base` gives texts none"):
        scored(home, "one", LABELS, base="words")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"text": "a", "label": 1.5}, "`label` is neither"),
        ({"text": "a", "label": True}, "`label` is neither"),
        ({"text": " ", "label": 1}, "`text` is no text"),
        ({"text": "a"}, "`label` is neither"),
        ({"text": "a", "other": 3, "label": 1}, "`other` is no text"),
    ],
)
def test_a_line_that_has_no_label_is_told(tmp_path: Path, line: object, said: str) -> None:
    file = tmp_path / "mood.jsonl"
    file.write_text(json.dumps({"text": "a", "label": 1}) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(DataError, match=said) as caught:
        read_data({"mood": str(file)})
    assert caught.value.problems[0].where == f"{file}:2"


def test_pairs_are_read_and_what_is_none_is_told(tmp_path: Path) -> None:
    file = tmp_path / "sts.jsonl"
    good = {"text": "a", "other": "b", "similarity": 2}
    file.write_text(json.dumps(good) + "\n" + json.dumps({**good, "similarity": 3}) + "\n")
    assert read_data({"sts": str(file)}) == [Pairs("sts", (Pair("a", "b", 2), Pair("a", "b", 3)))]
    file.write_text(json.dumps(good) + "\n" + json.dumps({**good, "similarity": "x"}) + "\n")
    with pytest.raises(DataError, match="`similarity` is no number"):
        read_data({"sts": str(file)})
    file.write_text(json.dumps(good) + "\n")
    with pytest.raises(DataError, match="all pairs have one `similarity`"):
        read_data({"sts": str(file)})


def test_the_command_scores_a_classifier_and_bounds_hold_it(home: Path, tmp_path: Path) -> None:
    lines = [{"text": one.text, "other": one.other, "label": one.label} for one in LABELS.labels]
    file = tmp_path / "mood.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["eval", str(home / "one"), "--data", str(file), "--parent", f"base={home / 'two'}"]
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 0, found.output
    assert "right of 4" in found.stdout.splitlines()[1]
    recipe = {
        "base": str(home / "one"),
        "experts": {"two": str(home / "two")},
        "steps": [{"linear": {"weights": {"two": 0.5}}}],
        "expect": {
            "data": {"mood": str(file)},
            "bounds": [
                {"data": "mood", "score": "similarity", "against": "base", "at_least": 0.2},
                {"data": "mood", "score": "accuracy", "at_least": 1.01},
            ],
        },
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    ran = CliRunner().invoke(main, ["run", str(tmp_path / "recipe.json"), "--check"])
    assert ran.exit_code == 3, ran.output
    assert "mood: accuracy is" in ran.stderr
    recipe["expect"]["bounds"] = [{"data": "mood", "score": "perplexity", "at_most": 9}]  # type: ignore[index]
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    ran = CliRunner().invoke(main, ["check", str(tmp_path / "recipe.json")])
    assert ran.exit_code == 2, ran.output
    assert "`mood` holds labels, which have no `perplexity`" in ran.stderr
