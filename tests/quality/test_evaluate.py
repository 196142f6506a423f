"""Scores of tiny models, held to what transformers itself computes."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mergekit_lite.errors import DataError, RecipeError, ResourceError
from mergekit_lite.quality.data import Data, Question, Questions, Texts
from mergekit_lite.quality.evaluate import evaluate
from mergekit_lite.quality.forward import Settings
from mergekit_lite.quality.scores import ChoiceScore, Evaluation, TextScore
from mergekit_lite.quality.subjects import MERGE, parents, subject
from tests.calibrate.conftest import save_model
from tests.checkpoints import read_weights, write_json, write_weights

TEXTS = Texts("words", ("w4 w6 w8 w10 w4 w6", "w5 w7 w9", "w12 w14"))
QUIZ = Questions(
    "quiz",
    (
        Question("w4 w5", ("w6 w7", "w8", "w9 w10 w11"), 2),
        Question("w9", ("w20", "w21"), 0),
    ),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    return {
        "one": save_model(home / "one", "llama", seed=0),
        "two": save_model(home / "two", "llama", seed=1),
        "routed": save_model(home / "routed", "mixtral", seed=2),
    }


def scored(folder: Path, *data: Data, batch: int = 2048, **others: Path) -> Evaluation:
    named = {name: str(path) for name, path in others.items()}
    return evaluate(subject(MERGE, str(folder)), parents(named), data, Settings(batch=batch))


def logits_of(folder: Path, text: str) -> tuple[Any, Any, int]:
    """Return log-probabilities and ids of a text by transformers, and how many were given."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits, 1), ids[0], len(ids[0])


@pytest.mark.parametrize("name", ["one", "routed"])
def test_bits_per_byte_are_those_of_transformers(folders: dict[str, Path], name: str) -> None:
    found = scored(folders[name], TEXTS, batch=8).scores[MERGE]["words"]
    assert isinstance(found, TextScore)
    for unit, window in enumerate(TEXTS.windows):
        said, ids, count = logits_of(folders[name], window)
        expected = -said[range(count - 1), ids[1:]].sum().item()
        assert found.nats[unit] == pytest.approx(expected, rel=1e-5)
        assert found.tokens[unit] == count - 1
        # This tokenizer has nothing to begin a text with, so the first word is only given.
        assert found.nbytes[unit] == len(window) - len(window.split()[0])
    assert found.bits_per_byte == pytest.approx(sum(found.nats) / math.log(2) / sum(found.nbytes))


def test_a_choice_is_the_likeliest_by_byte(folders: dict[str, Path]) -> None:
    found = scored(folders["one"], QUIZ).scores[MERGE]["quiz"]
    assert isinstance(found, ChoiceScore)
    chosen = []
    for question in QUIZ.questions:
        given = len(question.question.split())
        likeliest = []
        for choice in question.choices:
            said, ids, count = logits_of(folders["one"], f"{question.question} {choice}")
            rows = range(given - 1, count - 1)
            likeliest.append(said[rows, ids[given:]].sum().item() / len(choice))
        chosen.append(likeliest.index(max(likeliest)))
    assert found.chosen == tuple(chosen)
    assert found.answers == (2, 0)


def test_likeness_to_a_parent_by_hand(folders: dict[str, Path]) -> None:
    found = scored(folders["one"], TEXTS, two=folders["two"], same=folders["one"])
    assert found.likeness["same"]["words"].mean_kl == 0.0
    assert found.likeness["same"]["words"].agreement == 1.0
    like = found.likeness["two"]["words"]
    for unit, window in enumerate(TEXTS.windows):
        own, _, _ = logits_of(folders["one"], window)
        parent, _, _ = logits_of(folders["two"], window)
        kl = (parent.exp() * (parent - own)).sum().item()
        assert like.kl[unit] == pytest.approx(kl, rel=1e-4)
        assert like.agreed[unit] == int((own.argmax(1) == parent.argmax(1)).sum())
    assert found.scores["two"] == scored(folders["two"], TEXTS).scores[MERGE]


def test_scores_do_not_depend_on_batches_or_company(folders: dict[str, Path]) -> None:
    alone = scored(folders["one"], TEXTS, batch=1).scores[MERGE]["words"]
    beside = scored(folders["one"], QUIZ, TEXTS, batch=99).scores[MERGE]["words"]
    assert isinstance(alone, TextScore)
    assert isinstance(beside, TextScore)
    assert beside.nats == pytest.approx(alone.nats, rel=1e-5)


def test_a_parent_with_another_tokenizer_is_scored_but_not_compared(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    other = save_model(tmp_path / "other", "llama", seed=3)
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"w4": 4', '"w4": 5').replace('"w5": 5', '"w5": 4'))
    said: list[str] = []
    found = evaluate(
        subject(MERGE, str(folders["one"])),
        parents({"other": str(other)}),
        [TEXTS],
        tell=said.append,
    )
    assert "other" in found.scores
    assert "other" not in found.likeness
    assert "other has another tokenizer: no KL, no agreement with it" in said


def test_an_adapter_is_scored_on_its_base(folders: dict[str, Path], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((2, 32), (32, 2)))
    name = "model.layers.0.self_attn.q_proj"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    factors = {
        f"base_model.model.{name}.lora_{which}.weight": x
        for which, x in zip("AB", (a, b), strict=True)
    }
    save_file(factors, adapter / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    write_json(adapter / "adapter_config.json", config)
    merged = tmp_path / "merged"
    shutil.copytree(folders["one"], merged)
    weights = read_weights(merged)
    weights[f"{name}.weight"] += 2 * b @ a
    write_weights(merged, weights)

    found = scored(folders["one"], TEXTS, base=folders["one"], tuned=adapter, merged=merged).scores
    losses = {name: scores["words"].nats for name, scores in found.items()}  # type: ignore[union-attr]
    assert losses["tuned"] == pytest.approx(losses["merged"], rel=1e-4)
    assert losses["tuned"] != pytest.approx(losses["base"], rel=1e-2)


def test_a_tokenizer_of_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    small = save_model(tmp_path / "small", "llama", vocab_size=10)
    with pytest.raises(DataError, match="the id 14, the model's embedding has 10 rows"):
        scored(small, TEXTS)


def test_one_token_is_nothing_to_predict(folders: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="one token, and nothing to predict"):
        scored(folders["one"], Texts("word", ("w4",)))


def test_a_piece_longer_than_the_model_is_refused(folders: dict[str, Path]) -> None:
    long = Texts("long", (" ".join(["w4"] * 65),))
    with pytest.raises(DataError, match="65 tokens, and the model takes 64"):
        scored(folders["one"], long)


def test_too_little_memory_says_how_to_go_on(folders: dict[str, Path]) -> None:
    with pytest.raises(ResourceError, match="are allowed") as caught:
        evaluate(subject(MERGE, str(folders["one"])), [], [TEXTS], Settings(max_memory=1000))
    assert "bfloat16" in caught.value.problems[0].hint


def test_a_parent_cannot_be_called_like_the_model(folders: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match="what the model itself is called"):
        parents({MERGE: str(folders["one"])})
