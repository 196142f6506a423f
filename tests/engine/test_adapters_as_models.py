"""Every op, from end to end: adapters as experts give what the models they stand for give."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

import mergekit_lite
from mergekit_lite.cli._example import EXPERTS, example_recipe
from mergekit_lite.ops import OpSpec, registry
from tests.checkpoints import read_weights, write_json

LAYERS, RANK, SCALE = 4, 4, 2.0
LEFT_ALONE = {expert: (3,) for expert in EXPERTS} | {EXPERTS[1]: (0, 3)}
"""Layers that an adapter has no factors for; a model has the base's weights there."""
SHAPES = {
    f"model.layers.{layer}.{module}": shape
    for layer in range(LAYERS)
    for module, shape in (
        ("self_attn.q_proj", (24, 24)),
        ("mlp.up_proj", (48, 24)),
        ("mlp.down_proj", (24, 48)),
    )
}


def _compares(spec: OpSpec) -> bool:
    """Return whether both forms are the same request.

    Statistic files name a model's own tensors, a fold is of adapters alone, and a patch is the
    difference of two models.
    """
    return not (spec.calibration or spec.structural or spec.name in ("lora_fold", "port_patch"))


NAMES = sorted(name for name, spec in registry().items() if _compares(spec))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and each expert as an adapter (`NAME-lora`) and as a model (`NAME-model`)."""
    folder = tmp_path_factory.mktemp("forms")
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    base = {f"{name}.weight": 0.05 * noise(*shape) for name, shape in SHAPES.items()}
    base |= {"model.embed_tokens.weight": 0.05 * noise(32, 24), "model.norm.weight": torch.ones(24)}
    _write_model(folder / "base", base)
    for expert in EXPERTS:
        factors: dict[str, torch.Tensor] = {}
        whole = dict(base)
        for name, (tall, wide) in SHAPES.items():
            if any(f"layers.{layer}." in name for layer in LEFT_ALONE[expert]):
                continue
            a, b = 0.1 * noise(RANK, wide), 0.1 * noise(tall, RANK)
            factors[f"base_model.model.{name}.lora_A.weight"] = a
            factors[f"base_model.model.{name}.lora_B.weight"] = b
            whole[f"{name}.weight"] = base[f"{name}.weight"] + SCALE * (b @ a)
        _write_model(folder / f"{expert}-model", whole)
        adapter = folder / f"{expert}-lora"
        adapter.mkdir()
        save_file(factors, adapter / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": SCALE * RANK}
        write_json(adapter / "adapter_config.json", settings)
    return folder


def _write_model(folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    folder.mkdir()
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", {"model_type": "made-up", "num_hidden_layers": LAYERS})


def _merged(
    place: Path, out: Path, name: str, form: str, steps: Any = None
) -> dict[str, torch.Tensor]:
    recipe: dict[str, Any] = yaml.safe_load(example_recipe(registry()[name]))
    recipe["steps"] = steps or recipe["steps"]
    recipe["base"] = str(place / "base")
    key = "lora" if form == "lora" else "model"
    recipe["experts"] = {e: {key: str(place / f"{e}-{form}")} for e in recipe["experts"]}
    if name == "layer_swap":
        recipe["steps"][0]["layer_swap"] |= {"bottom": 1, "top": 1}
    shutil.rmtree(out, ignore_errors=True)
    mergekit_lite.run(recipe, out, threads=1)
    return read_weights(out)


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_is_the_model_it_stands_for(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    _compare(place, *(_merged(place, tmp_path / "out", name, form) for form in ("lora", "model")))


def _compare(
    place: Path, low: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor]
) -> None:
    base = read_weights(place / "base")
    apart = torch.cat([(low[key] - whole[key]).flatten() for key in base])
    change = torch.cat([(whole[key] - base[key]).flatten() for key in base])
    # The model's weights were rounded once more than the adapter's factors.
    assert float(apart.norm()) <= 1e-4 * float(change.norm())
    assert float(change.norm()) > 0


WHOLE_MODEL: list[tuple[str, dict[str, Any]]] = [
    ("ties", {"scope": "model", "density": 0.3, "zero_sign": "majority"}),
    ("ties", {"scope": "model", "density": 0.9, "tie_mode": "official"}),  # zeros are kept too
    ("ties", {"scope": "model", "trim": "std", "std_factor": 0.7}),  # zeros count as entries
    ("ties", {"scope": "model", "trim": "norm", "norm_share": 0.8}),
    ("dare_ties", {"scope": "model", "density": 0.5}),
    ("tatr", {"quantile": 0.9}),
    ("tatr", {"quantile": 0.3}),  # the threshold is zero: all that two have changed falls out
    ("pcb", {"ratio": 0.3}),
    # The median is over all layers, those of no adapter among them.
    ("mediator_split", {"keep": EXPERTS[0], "density": 0.9}),
]


@pytest.mark.parametrize("jit", ["1", "0"])
@pytest.mark.parametrize(("name", "params"), WHOLE_MODEL)
def test_a_share_of_the_model_counts_what_an_adapter_leaves_alone(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    params: dict[str, Any],
    jit: str,
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    monkeypatch.setattr(
        "mergekit_lite.plan.remembered.cache_folder", lambda part: tmp_path / "cache" / part
    )
    forms = ("lora", "model")
    _compare(
        place,
        *(_merged(place, tmp_path / "out", name, form, [{name: params}]) for form in forms),
    )
