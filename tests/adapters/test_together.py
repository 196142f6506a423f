"""Folders of several adapters do in the installed PEFT what they are said to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import ArrowConfig, PeftConfig, PeftModel, create_arrow_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mergekit_lite import adapting
from mergekit_lite.cli.main import main
from mergekit_lite.errors import RecipeError
from mergekit_lite.export.verify import verify
from tests.moe.dense import make, tokens
from tests.moe.loras import LINEAR, save_lora

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and adapters of it: `a` and `b` of one form, `wide` of another rank and modules."""
    root = tmp_path_factory.mktemp("together")
    base = make("llama", root / "base")
    for seed, name in enumerate("ab"):
        save_lora(base, root / name, seed=seed)
    wide: dict[str, Any] = {"r": 6, "lora_alpha": 3, "target_modules": LINEAR[1:]}
    save_lora(base, root / "wide", seed=7, **wide)
    save_lora(base, root / "dora", seed=8, use_dora=True)
    return root


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(tokens()).logits
    return found


def plain(home: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(home / "base")
    model.config.use_cache = False
    return model


def average(home: Path, names: list[str]) -> torch.Tensor:
    model = PeftModel.from_pretrained(plain(home), home / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(home / name, adapter_name=name)
    share = [1 / len(names)] * len(names)
    model.add_weighted_adapter(names, share, "all", combination_type="cat")
    model.set_adapter("all")
    return logits(model)


def as_x_lora(home: Path, folder: Path) -> Any:
    config = PeftConfig.from_pretrained(folder)
    config.adapters = {key: f"{folder}/{name}" for key, name in config.adapters.items()}
    return PeftModel.from_pretrained(plain(home), folder, config=config)


@pytest.mark.parametrize("layerwise", [False, True])
def test_x_lora_with_a_classifier_of_zeros_is_the_average(
    home: Path, tmp_path: Path, layerwise: bool
) -> None:
    names, out = ["a", "b", "wide"], tmp_path / "x"
    adapters = [str(home / name) for name in names]
    assert adapting.xlora_folder(str(home / "base"), adapters, out, layerwise=layerwise) == names
    model = as_x_lora(home, out)
    classifier = model.base_model.internal_xlora_classifier.layers[0]
    assert not classifier.weight.any()
    assert classifier.weight.shape == (3 * (12 if layerwise else 1), 32)
    assert torch.allclose(logits(model), average(home, names), atol=1e-4)
    for name in names:
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            assert (out / name / file).read_bytes() == (home / name / file).read_bytes()
    assert not verify(out)


def test_a_trained_classifier_would_be_loaded(home: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    adapters = [str(home / name) for name in "ab"]
    adapting.xlora_folder(str(home / "base"), adapters, tmp_path / "x")
    file = tmp_path / "x" / "adapter_model.safetensors"
    stored = load_file(file)
    stored["base_model.internal_xlora_classifier.layers.0.bias"] = torch.tensor([50.0, 0.0])
    save_file(stored, file)
    alone = PeftModel.from_pretrained(plain(home), home / "a")
    assert torch.allclose(logits(as_x_lora(home, tmp_path / "x")), logits(alone), atol=1e-4)


def arrow_of(home: Path, paths: list[Path], **config: Any) -> Any:
    general = config.pop("general", None)
    listed = [str(path) for path in paths]
    config = {"top_k": 2, "router_temperature": 1.0, **config}
    return create_arrow_model(
        plain(home), listed, ArrowConfig(**config), general_adapter_paths=general
    )


def test_arrow_takes_adapters_of_several_ranks(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "arrow"
    adapters = [str(home / name) for name in ("a", "b", "wide")]
    with pytest.raises(ValueError, match="mismatch"):
        arrow_of(home, [Path(path) for path in adapters])
    names = adapting.arrow_folder(str(home / "base"), adapters, out, top_k=2)
    assert names == ["a", "b", "wide"]
    model = arrow_of(home, [out / name for name in names])
    assert torch.isfinite(logits(model)).all()
    # Each is the adapter that it was.
    for name in names:
        one = PeftModel.from_pretrained(plain(home), out / name)
        other = PeftModel.from_pretrained(plain(home), home / name)
        assert torch.allclose(logits(one), logits(other), atol=1e-5)
    assert not verify(out)


def test_arrow_of_adapters_that_fit_already_is_theirs(home: Path, tmp_path: Path) -> None:
    paths = [home / "a", home / "b"]
    adapting.arrow_folder(str(home / "base"), list(map(str, paths)), tmp_path / "arrow", top_k=2)
    mine = arrow_of(home, [tmp_path / "arrow" / name for name in "ab"])
    assert torch.allclose(logits(mine), logits(arrow_of(home, paths)), atol=1e-5)


def test_general_knowledge_is_subtracted_as_peft_does(home: Path, tmp_path: Path) -> None:
    general = [save_lora(home / "base", tmp_path / f"g{n}", seed=20 + n) for n in range(2)]
    paths = [home / "a", home / "b"]
    out, listed = tmp_path / "arrow", list(map(str, general))
    adapting.arrow_folder(
        str(home / "base"), list(map(str, paths)), out, top_k=2, general=listed
    )  # fmt: skip
    mine = logits(arrow_of(home, [out / name for name in "ab"]))
    theirs = logits(arrow_of(home, paths, use_gks=True, general=listed))
    assert torch.allclose(mine, theirs, atol=1e-3)
    assert not torch.allclose(mine, logits(arrow_of(home, paths)), atol=0.01)
    module = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    means = sum(load_file(path / "adapter_model.safetensors")[module] for path in general) / 2
    own = load_file(home / "a" / "adapter_model.safetensors")[module]
    assert torch.equal(load_file(out / "a" / "adapter_model.safetensors")[module], own - means)


def test_the_verbs(home: Path, tmp_path: Path) -> None:
    listed = [str(home / "base"), str(home / "a"), str(home / "wide")]
    for verb in ("xlora", "arrow"):
        out = tmp_path / verb
        words = ["adapter", verb, *listed, "-o", str(out), "--top-k", "2"]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        assert str(out) in result.output
        assert "a, wide" in result.output
        assert "from peft import" in (out / "README.md").read_text()
    config = json.loads((tmp_path / "xlora" / "adapter_config.json").read_text())
    assert config["adapters"] == {"0": "a", "1": "wide"}


def test_what_does_not_go_together_is_refused(home: Path, tmp_path: Path) -> None:
    base, out = str(home / "base"), tmp_path / "out"
    a, dora = str(home / "a"), str(home / "dora")
    for write in (adapting.xlora_folder, adapting.arrow_folder):
        with pytest.raises(RecipeError, match="holds more than factors of linear layers"):
            write(base, [a, dora], out, top_k=1)
        with pytest.raises(RecipeError, match="2 of 1 adapters"):
            write(base, [a], out, top_k=2)
        other = make("llama", tmp_path / f"other{write.__name__}", hidden_size=16)
        with pytest.raises(RecipeError, match="does not fit the base"):
            write(str(other), [a], out, top_k=1)
    assert not out.exists()
