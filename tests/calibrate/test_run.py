"""A calibration from texts to a folder of statistics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from mergekit_lite.calibrate import run as running
from mergekit_lite.calibrate.run import Settings, calibrate
from mergekit_lite.calibrate.store import Store, read_layer, read_record
from mergekit_lite.calibrate.texts import Text
from mergekit_lite.checkpoint import read_checkpoint
from mergekit_lite.cli.calibrate import command
from mergekit_lite.errors import DataError, RecipeError, ResourceError, SourceError
from mergekit_lite.sources import Model, resolve
from tests.checkpoints import perturbed, read_weights, tiny_llama

TEXTS = [
    Text(" ".join(f"w{(7 * n * k) % 60 + 3}" for k in range(4 + n)), "ab"[n % 2], "")
    for n in range(6)
]


def model_in(folder: Path) -> Model:
    return resolve(str(folder), relative_to=Path())


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_folder_is_a_checkpoint_for_each_kind_and_says_where_it_comes_from(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    told: list[str] = []

    calibrate(
        model_in(saved["mixtral"]),
        TEXTS,
        tmp_path / "stats",
        kinds=["rates", "gram", "router"],
        tell=told.append,
    )

    record = read_record(tmp_path / "stats")
    assert record["kinds"] == ["gram", "router", "rates"]
    assert (record["domains"], record["samples"], record["layers"]) == (["a", "b"], 6, 3)
    header = read_checkpoint(tmp_path / "stats" / "gram")
    assert len(header.tensors) == 3 * 4  # queries, keys, values, outputs
    assert header.warnings == ()
    assert header.metadata["model_sha256"] == record["model_sha256"]
    router = read_layer(tmp_path / "stats", "router", 1)
    assert router["model.layers.1.mlp.count"].sum() == record["tokens"]
    assert told[0].startswith(f"{record['tokens']} tokens of 6 samples in 2 domains (a, b)")
    assert told[1:] == [f"layer {n} of 3" for n in (1, 2, 3)]
    with pytest.raises(SourceError, match="no statistics of the kind `hidden`"):
        read_layer(tmp_path / "stats", "hidden", 0)


def test_an_interrupted_measurement_goes_on_and_gives_the_same_bytes(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_in(saved["llama"])
    kinds = ["gram", "router", "hidden"]
    calibrate(model, TEXTS, tmp_path / "whole", kinds=kinds)
    real, layers = Store.keep, []

    def stop(self: Store, layer: int, hidden: Any, **how: Any) -> None:
        real(self, layer, hidden, **how)
        layers.append(layer)
        if len(layers) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "keep", stop)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, TEXTS, tmp_path / "halves", kinds=kinds)
    assert not (tmp_path / "halves").exists()
    calibrate(model, TEXTS, tmp_path / "halves", kinds=kinds)

    assert layers == [0, 1, 2]
    assert bytes_of(tmp_path / "halves") == bytes_of(tmp_path / "whole")
    assert not (tmp_path / "halves.partial").exists()


def test_what_was_begun_with_other_texts_is_not_taken_up(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    model = model_in(saved["llama"])
    stale = Store(tmp_path / "stats", {"texts_sha256": "others"})
    stale.keep(0, [torch.zeros(1, 1, 32)])

    calibrate(model, TEXTS, tmp_path / "stats", kinds=["router"])

    assert read_layer(tmp_path / "stats", "router", 0)


def test_a_folder_in_the_way_and_too_little_memory_are_refused_first(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "Weights", None)  # reading a weight would fail
    model = model_in(saved["llama"])
    (tmp_path / "other").mkdir()
    with pytest.raises(RecipeError, match="holds no statistics"):
        calibrate(model, TEXTS, tmp_path / "other")
    (tmp_path / "other" / "calibration.json").write_text("{}")
    with pytest.raises(RecipeError, match="there already"):
        calibrate(model, TEXTS, tmp_path / "other")
    with pytest.raises(ResourceError, match=r"about [\d,]+ bytes of memory, 1,000 are allowed"):
        calibrate(model, TEXTS, tmp_path / "new", max_memory=1000)
    with pytest.raises(RecipeError, match=r"no statistic is called `grams`[\s\S]*`gram`"):
        calibrate(model, TEXTS, tmp_path / "new", kinds=["grams"])
    with pytest.raises(DataError, match="no token is left"):
        calibrate(model, TEXTS, tmp_path / "new", settings=Settings(max_tokens=1))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_model_is_not_run_without_transformers(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"transformers[\s\S]*mergekit-lite\[calibrate\]"):
        calibrate(model_in(saved["llama"]), TEXTS, tmp_path / "stats")


def test_the_command_measures_what_regmean_then_reads(tmp_path: Path) -> None:
    import mergekit_lite

    base = tiny_llama(tmp_path / "base", vocab=64)
    for seed, name in enumerate(("math", "code"), 1):
        perturbed(base, tmp_path / name, seed=seed, scale=0.02)
        lines = [json.dumps({"text": f"w{seed + 3} w{k} w{3 * k + seed}"}) for k in range(4, 12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        words = [str(tmp_path / name), "--data", str(tmp_path / f"{name}.jsonl")]
        out = tmp_path / f"{name}-stats"
        ran = CliRunner().invoke(command, [*words, "-o", str(out)], catch_exceptions=False)
        assert ran.stdout == f"{out}\n"
    files = {name: f"{name}-stats/gram" for name in ("math", "code")}
    recipe = {
        "schema_version": 1,
        "base": "base",
        "experts": {name: {"model": name} for name in files},
        "steps": [{"regmean": {"file": files, "offdiag": 1.0, "solver": "ridge"}}],
        "output": {"dtype": "float32"},
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    mergekit_lite.run(
        mergekit_lite.plan(mergekit_lite.load(tmp_path / "recipe.json")), tmp_path / "out"
    )

    name = "model.layers.1.mlp.gate_proj.weight"
    merged = read_weights(tmp_path / "out")[name].double()
    top = torch.zeros_like(merged)
    bottom = torch.zeros(merged.shape[1], merged.shape[1], dtype=torch.float64)
    for expert in files:
        gram = load_file(tmp_path / files[expert] / "layer-00001.safetensors")[name].double()
        top += read_weights(tmp_path / expert)[name].double() @ gram
        bottom += gram
    torch.testing.assert_close(merged @ bottom, top, rtol=1e-3, atol=1e-4)


def test_grams_are_what_an_adapter_is_split_off_by(saved: dict[str, Path], tmp_path: Path) -> None:
    from mergekit_lite.adapters.split import split
    from mergekit_lite.api import corda_split

    calibrate(model_in(saved["llama"]), TEXTS, tmp_path / "stats", kinds=["gram"])
    modules = corda_split(
        str(saved["llama"]), tmp_path / "stats" / "gram", tmp_path / "start", rank=4
    )

    assert len(modules) == 3 * 7
    stored = load_file(tmp_path / "start" / "adapter_model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    weight = read_weights(saved["llama"])[f"{name}.weight"].double()
    gram = load_file(tmp_path / "stats" / "gram" / "layer-00001.safetensors")[f"{name}.weight"]
    b, a = split(weight, gram.double(), 4, "ipm")
    found = (stored[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "BA")
    torch.testing.assert_close(next(found) @ next(found), b @ a, rtol=1e-4, atol=1e-5)
