"""Statistics of gradients against those of whole models, text by text."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mergekit_lite
from mergekit_lite.calibrate import run as running
from mergekit_lite.calibrate.run import Prepared, Settings, calibrate, prepare
from mergekit_lite.calibrate.slopes import drawn
from mergekit_lite.calibrate.store import Store
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.sources import resolve
from tests.calibrate.test_run import TEXTS, bytes_of, model_in
from tests.checkpoints import perturbed, read_weights

Found = dict[str, torch.Tensor]


def expected(folder: Path, prepared: Prepared, kind: str) -> Found:
    """Return a statistic of gradients by running the whole model on each text alone."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    labels = prepared.skeleton.head == "labels"
    loader = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype=torch.float32).eval()
    sums: dict[str, Any] = dict.fromkeys((n for n, _ in model.named_parameters()), 0.0)
    counted = 0
    for row, sample in enumerate(prepared.samples.samples):
        ids = torch.tensor([sample.ids])
        logits = model(input_ids=ids, use_cache=False).logits if not labels else model(ids).logits
        logits = logits if labels else logits[0, :-1]
        wanted = drawn(logits.detach(), row) if kind == "fisher" else ids[0, 1:]
        chosen = torch.log_softmax(logits, 1)[range(len(wanted)), wanted]
        model.zero_grad()
        (chosen.sum() if kind == "fisher" else chosen.mean()).backward()
        counted += len(wanted) if kind == "fisher" else 1
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                g = weight.grad.double()
                sums[name] = sums[name] + (g.square() if kind == "fisher" else g.abs())
    return {name: value / counted for name, value in sums.items() if not isinstance(value, float)}


def measured(folder: Path, out: Path, kind: str) -> Found:
    calibrate(model_in(folder), TEXTS, out, kinds=[kind], settings=Settings(batch=30))
    return read_weights(out / kind)


def same(found: Found, wanted: Found) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = float(value.max())
        torch.testing.assert_close(found[name].double(), value, rtol=1e-3, atol=1e-5 * scale)
        assert float(found[name].max()) > 0


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "fisher"), ("llama", "gradient"), ("bloom", "fisher"), ("gpt2", "gradient")],
)
def test_slopes_of_texts_are_those_of_the_whole_model(
    saved: dict[str, Path], tmp_path: Path, family: str, kind: str
) -> None:
    found = measured(saved[family], tmp_path / "stats", kind)

    prepared = prepare(model_in(saved[family]), TEXTS, [kind], Settings())
    wanted = expected(saved[family], prepared, kind)
    stored = read_weights(saved[family])
    assert {name: value.shape for name, value in found.items()} == {
        name: stored[name].shape for name in stored
    }
    heads = {"lm_head.weight"} - stored.keys()
    same(found, {name: value for name, value in wanted.items() if name not in heads})


def test_experts_that_are_stored_one_by_one_have_their_own(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    found = measured(saved["mixtral"], tmp_path / "stats", "fisher")

    stored = read_weights(saved["mixtral"])
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in stored.items()}
    prepared = prepare(model_in(saved["mixtral"]), TEXTS, ["fisher"], Settings())
    wanted = expected(saved["mixtral"], prepared, "fisher")
    fused = wanted["model.layers.1.mlp.experts.gate_up_proj"]
    for part, rows in (("w1", slice(0, 48)), ("w3", slice(48, 96))):
        name = f"model.layers.1.block_sparse_moe.experts.2.{part}.weight"
        torch.testing.assert_close(found[name].double(), fused[2, rows], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
def test_labels_of_texts_have_fishers_too(
    labelling: dict[str, Path], tmp_path: Path, family: str
) -> None:
    found = measured(labelling[family], tmp_path / "stats", "fisher")

    prepared = prepare(model_in(labelling[family]), TEXTS, ["fisher"], Settings())
    wanted = expected(labelling[family], prepared, "fisher")
    # Every layer of DeBERTa computes with these: they get the plain mean.
    shared = {name for name in wanted if ".encoder.rel_embeddings." in name}
    shared |= {name for name in wanted if ".encoder.LayerNorm." in name}
    assert bool(shared) == (family == "deberta-v2")
    # Of a single kind of tokens one row is used, and keys' biases have no slope but rounding's.
    rounded = {name for name in wanted if float(wanted[name].max()) < 1e-12}
    same(
        {name: value for name, value in found.items() if name not in rounded},
        {name: value for name, value in wanted.items() if name not in shared | rounded},
    )


def test_labels_are_drawn_as_likely_as_the_model_says() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2])).repeat(20000, 1)
    counts = torch.bincount(drawn(logits, 3), minlength=3) / 20000
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)
    assert torch.equal(drawn(logits[:9], 3), drawn(logits, 3)[:9])
    assert not torch.equal(drawn(logits, 3), drawn(logits, 4))


@pytest.mark.parametrize("after", [2, 5, 9])
def test_a_way_back_that_was_interrupted_goes_on_and_gives_the_same_bytes(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    model = model_in(saved["bloom"])
    kinds = ["gram", "fisher", "gradient"]
    calibrate(model, TEXTS, tmp_path / "whole", kinds=kinds)
    real, notes = Store.note, []

    def stop(self: Store, done: int) -> None:
        real(self, done)
        notes.append(done)
        if done == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "note", stop)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, TEXTS, tmp_path / "halves", kinds=kinds)
    monkeypatch.setattr(Store, "note", real)
    calibrate(model, TEXTS, tmp_path / "halves", kinds=kinds)

    assert notes[-1] == after
    assert bytes_of(tmp_path / "halves") == bytes_of(tmp_path / "whole")


KILLED = """
import os, signal, sys
from pathlib import Path
from mergekit_lite.calibrate.run import calibrate
from mergekit_lite.calibrate.store import Store
from tests.calibrate.test_run import TEXTS, model_in
real = Store.note
def note(self, done):
    real(self, done)
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
Store.note = note
calibrate(model_in(Path(sys.argv[1])), TEXTS, Path(sys.argv[2]), kinds=["hidden", "fisher"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 5])
def test_a_killed_measurement_goes_on_after_its_last_layer(
    saved: dict[str, Path], tmp_path: Path, after: int
) -> None:
    out, kinds = tmp_path / "killed", ["hidden", "fisher"]
    words = [sys.executable, "-c", KILLED, str(saved["llama"]), str(out), str(after)]
    root = Path(__file__).parents[2]
    assert subprocess.run(words, cwd=root, check=False).returncode == -signal.SIGKILL
    told: list[str] = []
    calibrate(model_in(saved["llama"]), TEXTS, out, kinds=kinds, tell=told.append)

    assert told[1] == f"{after} steps of an earlier run, of a layer each, are taken up"
    calibrate(model_in(saved["llama"]), TEXTS, tmp_path / "whole", kinds=kinds)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


def test_fishers_weigh_the_entries_of_experts(saved: dict[str, Path], tmp_path: Path) -> None:
    folders = {"one": saved["llama"], "two": tmp_path / "two"}
    perturbed(saved["llama"], folders["two"], seed=3, scale=0.05)
    for name, folder in folders.items():
        measured(folder, tmp_path / f"{name}-stats", "fisher")
    recipe = {
        "base": str(saved["llama"]),
        "experts": {name: str(folder) for name, folder in folders.items()},
        "steps": [
            {"fisher": {"file": {n: str(tmp_path / f"{n}-stats/fisher") for n in folders},
                        "floor": 0.0}}
        ],
        "output": {"dtype": "float32"},
    }  # fmt: skip
    mergekit_lite.run(recipe, tmp_path / "out")

    merged = read_weights(tmp_path / "out")
    top, bottom = {}, {}
    for name, folder in folders.items():
        fishers = read_weights(tmp_path / f"{name}-stats" / "fisher")
        for key, value in read_weights(folder).items():
            top[key] = top.get(key, 0) + fishers[key] * value
            bottom[key] = bottom.get(key, 0) + fishers[key]
    for key, value in merged.items():
        known = bottom[key] > 1e-12
        torch.testing.assert_close(
            value[known], (top[key] / bottom[key])[known], rtol=1e-4, atol=1e-5
        )


def test_gradients_of_the_base_keep_experts_in_their_trust_region(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    perturbed(saved["llama"], tmp_path / "one", seed=3, scale=0.05)
    perturbed(saved["llama"], tmp_path / "two", seed=4, scale=0.05)
    measured(saved["llama"], tmp_path / "stats", "gradient")
    shutil.copytree(tmp_path / "stats", tmp_path / "same")
    files = {"one": str(tmp_path / "stats/gradient"), "two": str(tmp_path / "same/gradient")}
    recipe = {
        "base": str(saved["llama"]),
        "experts": {name: str(tmp_path / name) for name in ("one", "two")},
        "steps": [{"tatr_gradient": {"file": files, "quantile": 0.9}}],
        "output": {"dtype": "float32"},
    }
    mergekit_lite.run(recipe, tmp_path / "out")

    base, one, two, out = (
        read_weights(f) for f in (saved["llama"], *(tmp_path / n for n in ("one", "two", "out")))
    )
    slopes = read_weights(tmp_path / "stats" / "gradient")
    disturbed = {n: slopes[n] * ((one[n] - w).abs() + (two[n] - w).abs()) for n, w in base.items()}
    every = torch.cat([value.flatten() for value in disturbed.values()]).sort().values
    cut = every[int(0.9 * (len(every) - 1)) + 1]
    for name, weight in base.items():
        near = (disturbed[name] / cut - 1).abs() < 1e-4
        left = out[name] == weight
        assert torch.equal(left[~near], (disturbed[name] > cut)[~near])


def test_what_cannot_have_slopes_is_refused_before_weights(
    saved: dict[str, Path],
    labelling: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "Weights", None)  # reading a weight would fail
    with pytest.raises(RecipeError, match="`gradient` wants a model that predicts the next token"):
        calibrate(model_in(labelling["bert"]), TEXTS, tmp_path / "out", kinds=["gradient"])


def test_one_token_has_no_slope(saved: dict[str, Path], tmp_path: Path) -> None:
    one = [type(TEXTS[0])("w5", "a", "")]
    with pytest.raises(DataError, match="one token, and nothing to predict"):
        calibrate(model_in(saved["llama"]), one, tmp_path / "out", kinds=["fisher"])


def test_memory_and_disk_of_the_way_back_are_said(saved: dict[str, Path]) -> None:
    model = resolve(str(saved["llama"]), relative_to=Path())
    there = prepare(model, TEXTS, ["hidden"], Settings()).estimate
    back = prepare(model, TEXTS, ["fisher"], Settings()).estimate
    weights = sum(v.numel() for n, v in load_file(saved["llama"] / "model.safetensors").items()
                  if ".layers.1." in n)  # fmt: skip
    assert back.sums == 12 * weights
    assert back.hidden == 2 * there.hidden
    assert (there.disk, back.disk) == (0, 6 * there.hidden)
