"""A router that sees texts as means of a model's embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mergekit_lite.router import fit_router, load_router
from mergekit_lite.router.features import Embedding
from tests.calibrate.conftest import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("seen") / "model", "llama")


def test_the_mean_of_embeddings(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    table = AutoModelForCausalLM.from_pretrained(model).get_input_embeddings().weight.detach()
    mean = table[[5, 9, 9]].double().mean(0).numpy()
    features = Embedding(str(model))
    assert np.allclose(features.of("w5 w9 w9"), mean / np.linalg.norm(mean))
    assert not features.of("").any()
    draw = np.random.default_rng(0)
    texts = [
        (label, " ".join(f"w{number}" for number in draw.integers(*reach, 6)))
        for label, reach in (("low", (3, 30)), ("high", (30, 64)))
        for _ in range(60)
    ]
    fitted = fit_router(texts[::2], {"low": "a", "high": "b"}, texts[1::2], features=features)
    assert fitted.held_out.right >= 0.9 * fitted.held_out.texts
    path = tmp_path / "router.json"
    path.write_text(fitted.router.text())
    assert load_router(path).route("w40 w50 w61 w33").model == "b"
