"""LoRA adapters that are not what their configuration says, or not for this base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.plan.hollow import write_adapter

from .conftest import LINEAR, World

Q0 = "model.layers.0.self_attn.q_proj"
RECIPE = LINEAR.replace("{model: math", "{lora: adapter")


@pytest.fixture
def adapter(world: World) -> Path:
    """An adapter of one module, rank 4, all of whose entries are zero."""
    return write_adapter(world.folder / "adapter", {Q0: (32, 32)})


def _edit(adapter: Path, **changes: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_sound_one_merges(world: World, adapter: Path) -> None:
    assert world.run(RECIPE).exit_code == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "IA3"}, ("type IA3", "LORA only")),
        ({"use_qalora": True}, ("QALoRA", "use_qalora", "not supported")),
        ({"peft_type": "VERA"}, ("type VERA", "LORA only")),
        ({"peft_type": "LOHA"}, ("type LOHA", "LORA only")),
        ({"layer_replication": [[0, 1]]}, ("layer replication", "not supported")),
        ({"init_lora_weights": "pissa"}, ("pissa", "changes the base")),
    ],
)
def test_kinds_that_are_not_supported(
    world: World, adapter: Path, changes: dict[str, object], says: tuple[str, ...]
) -> None:
    _edit(adapter, **changes)
    world.refused(
        2, "recipe.yaml:3:16", "adapter_config.json", *says, "merge_and_unload", text=RECIPE
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"r": 0}, "`r` is 0"),
        ({"kasa_config": {"beta": 1}}, "says KaSA"),
        ({"use_dora": True}, "says DoRA"),
        ({"r": 8}, "rank 8"),
        ({"lora_alpha": "big"}, "`lora_alpha` is 'big'"),
        ({"rank_pattern": {"(": 3}}, "not a regular expression"),
    ],
)
def test_configurations_that_lie(
    world: World, adapter: Path, changes: dict[str, object], says: str
) -> None:
    _edit(adapter, **changes)
    world.refused(3, "recipe.yaml:3:16", str(adapter), says, text=RECIPE)


def test_configuration_that_is_no_json(world: World, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("{")
    world.refused(3, "recipe.yaml:3:16", "adapter_config.json", "JSON", text=RECIPE)


def test_weights_that_are_cut_short(world: World, adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)
    world.refused(3, "recipe.yaml:3:16", str(file), "cut short", text=RECIPE)


def test_weights_that_are_absent_or_pickled(world: World, adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.rename(adapter / "adapter_model.bin")
    world.refused(2, "adapter_model.bin", "can run code", "mergekit-lite convert", text=RECIPE)
    (adapter / "adapter_model.bin").unlink()
    world.refused(5, "has no adapter_model.safetensors", "fetch", text=RECIPE)


def test_modules_that_the_base_lacks(world: World) -> None:
    write_adapter(world.folder / "adapter", {"model.layers.9.mlp.up_proj": (64, 32)})
    world.refused(2, "recipe.yaml:3:9", "model.layers.9.mlp.up_proj.weight", text=RECIPE)


def test_modules_of_other_shapes(world: World) -> None:
    write_adapter(world.folder / "adapter", {Q0: (48, 32)})
    world.refused(2, "recipe.yaml:3:9", f"`{Q0}.weight` 48x32 (base 32x32)", text=RECIPE)


def test_adapter_as_the_base(world: World, adapter: Path) -> None:
    text = LINEAR.replace("base: base", "base: adapter")
    world.refused(2, "recipe.yaml:1:7", "`adapter` is a LoRA of org/base", text=text)
