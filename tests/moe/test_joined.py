"""A carved model put together again is the dense model that it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergekit_lite import api
from mergekit_lite.cli.main import main
from mergekit_lite.engine.blocks import Beside
from mergekit_lite.errors import MergekitLiteError
from mergekit_lite.export.verify import verify
from mergekit_lite.plan.types import Block, Read
from tests.calibrate.conftest import save_model
from tests.moe.dense import apart, config, make, shapes, tensor
from tests.moe.test_carve import TARGETS, carved

Dense = Callable[..., Path]

BACK = {
    ("llama", "glm4_moe"): "llama",
    ("phi3", "mixtral"): "mistral",
    ("llama", "mixtral"): "mistral",
    ("llama", "granitemoe"): "granite",
    ("llama", "granitemoeshared"): "granite",
}
"""Family of what comes back, where it is not the one that was carved."""


def joined(base: Path) -> dict[str, Any]:
    return {"base": str(base), "moe": {"dense": "concat"}}


@pytest.mark.parametrize(("donor", "target", "shared"), TARGETS)
def test_it_is_the_inverse_of_every_carve(
    dense: Dense, tmp_path: Path, donor: str, target: str, shared: int
) -> None:
    base, out = dense(donor), tmp_path / "dense"
    recipe = carved(base, target, experts=4 + shared, shared=shared, method="kmeans")
    api.run(recipe, tmp_path / "carved")
    api.run(joined(tmp_path / "carved"), out)
    assert config(out)["model_type"] == BACK.get((donor, target), donor)
    assert apart(base, out) < 2e-6
    assert not verify(out)
    if donor == "phi3":
        return
    assert shapes(out) == shapes(base)
    for name in shapes(base):
        # Four slices to choose from: factors of the down projections are powers of two.
        assert torch.equal(tensor(out, name), tensor(base, name)), name


def test_other_factors_come_back_to_rounding(dense: Dense, tmp_path: Path) -> None:
    base = dense("llama")
    recipe = carved(base, "mixtral", experts=7, experts_per_token=3, router="param")
    api.run(recipe, tmp_path / "carved")
    api.run(joined(tmp_path / "carved"), tmp_path / "dense")
    name = "model.layers.1.mlp.{}_proj.weight"
    for part in ("gate", "up"):
        part_name = name.format(part)
        assert torch.equal(tensor(tmp_path / "dense", part_name), tensor(base, part_name))
    down, before = (tensor(at, name.format("down")) for at in (tmp_path / "dense", base))
    torch.testing.assert_close(down, before, rtol=3e-7, atol=0)


@given(first=st.integers(0, 90), count=st.integers(1, 40))
def test_any_part_of_windows_side_by_side(first: int, count: int) -> None:
    parts = [
        np.arange(7 * width, dtype=np.float32).reshape(7, width) + width for width in (5, 3, 6)
    ]
    blocks = [
        (Block(Read("base", "x"), part.shape, (0, 0), part.shape, scale), _Held(part))
        for part, scale in zip(parts, (1.0, 2.0, 1.0), strict=True)
    ]
    whole = np.concatenate([parts[0], 2 * parts[1], parts[2]], axis=1).ravel()
    count = min(count, whole.size - first)
    found = np.empty(count, np.float32)
    Beside(blocks).fill(first, count, found.view(np.uint8))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, whole[first : first + count])


class _Held:
    dtype, is_delta = "F32", False

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values.ravel()

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        out[:] = self.values[first : first + count].view(np.uint8)


def test_the_exact_router_leaves_as_well(tmp_path: Path) -> None:
    base, data = save_model(tmp_path / "base", "llama"), tmp_path / "texts.txt"
    data.write_text(
        "\n\n".join(" ".join(f"w{3 + i * j % 60}" for i in range(9)) for j in range(30))
    )
    recipe = carved(base, "routed", experts_per_token=2, router="exact", shared=1, data=str(data))
    api.run(recipe, tmp_path / "carved")
    api.run(joined(tmp_path / "carved"), tmp_path / "dense")
    assert config(tmp_path / "dense")["model_type"] == "llama"
    assert not list((tmp_path / "dense").glob("*_routed.py"))
    for name in shapes(base):
        assert torch.equal(tensor(tmp_path / "dense", name), tensor(base, name)), name


@pytest.mark.parametrize(("donor", "target"), [("llama", "mixtral"), ("qwen2", "glm4_moe")])
def test_louder_slices_come_back_as_they_were(
    dense: Dense, tmp_path: Path, donor: str, target: str
) -> None:
    base = dense(donor)
    recipe = carved(base, target, experts=8, experts_per_token=4, router="param", slice_scale=2)
    api.run(recipe, tmp_path / "loud")
    if target == "glm4_moe":
        assert config(tmp_path / "loud")["routed_scaling_factor"] == 8
    else:
        name = "model.layers.0.block_sparse_moe.experts.0.w2.weight"
        neuron = json.loads((tmp_path / "loud" / "carve_neurons.json").read_text())["0"][0]
        column = tensor(base, "model.layers.0.mlp.down_proj.weight")[:, neuron]
        assert torch.equal(tensor(tmp_path / "loud", name)[:, 0], 8 * column)
    api.run(joined(tmp_path / "loud"), tmp_path / "dense")
    for name in shapes(base):
        assert torch.equal(tensor(tmp_path / "dense", name), tensor(base, name)), name


def test_half_precision(tmp_path: Path) -> None:
    base = make("qwen2", tmp_path / "base", dtype="bfloat16", hidden_size=64)
    api.run(carved(base, "qwen2_moe", experts=6, shared=2), tmp_path / "carved")
    api.run(joined(tmp_path / "carved"), tmp_path / "dense")
    for name in shapes(base):
        assert torch.equal(tensor(tmp_path / "dense", name), tensor(base, name)), name


def test_a_part_of_the_layers(dense: Dense, tmp_path: Path) -> None:
    base = dense("qwen3")
    recipe = carved(base, "qwen3_moe", experts=4)
    recipe["moe"]["layers"] = "1"
    api.run(recipe, tmp_path / "carved")
    api.run(joined(tmp_path / "carved"), tmp_path / "dense")
    plan = api.plan(joined(tmp_path / "carved"))
    merged = [job.name for job in plan.jobs if job.kind == "merge"]
    assert sorted(merged) == [
        f"model.layers.1.mlp.{part}_proj.weight" for part in ("down", "gate", "up")
    ]
    for name in shapes(base):
        assert torch.equal(tensor(tmp_path / "dense", name), tensor(base, name)), name
    assert not list((tmp_path / "dense").glob("carve*"))
    assert not list((tmp_path / "dense").glob("moe_manifest*"))


def test_partly_rotated_heads_stay_in_their_family(tmp_path: Path) -> None:
    own = {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}
    base = make("phi3", tmp_path / "base", rope_parameters=own)
    api.run(carved(base, "glm4_moe", experts=4), tmp_path / "carved")
    api.run(joined(tmp_path / "carved"), tmp_path / "dense")
    assert config(tmp_path / "dense")["first_k_dense_replace"] == 3
    assert apart(base, tmp_path / "dense") < 2e-6


def test_the_verb(dense: Dense, tmp_path: Path) -> None:
    api.run(carved(dense("llama"), "glm4_moe", shared=2), tmp_path / "carved")
    said = ["moe", "to-dense", str(tmp_path / "carved"), "--method", "concat"]
    result = CliRunner().invoke(main, [*said, "-o", str(tmp_path / "dense")])
    assert result.exit_code == 0, result.output
    assert apart(dense("llama"), tmp_path / "dense") < 2e-6
    assert math.prod(shapes(tmp_path / "dense")["model.layers.0.mlp.up_proj.weight"]) == 48 * 32


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("carve_neurons.json", None, "there is no `carve_neurons.json`"),
        ("moe_manifest.json", None, "there is no `moe_manifest.json`"),
        ("carve_neurons.json", '{"0": [1, 1]}', "do not say how this model was carved"),
        ("carve_neurons.json", "[", "do not say how this model was carved"),
        ("config.json", {"model_type": "qwen3_moe"}, "is of a `mixtral` model"),
        ("moe_manifest.json", {"carve": {"experts": 6}}, "do not say how this model was carved"),
    ],
)
def test_what_is_no_carve_is_refused(
    dense: Dense, tmp_path: Path, file: str, text: Any, told: str
) -> None:
    api.run(carved(dense("llama"), "mixtral"), tmp_path / "carved")
    path = tmp_path / "carved" / file
    if text is None:
        path.unlink()
    elif isinstance(text, dict):
        path.write_text(json.dumps({**json.loads(path.read_text()), **text}))
    else:
        path.write_text(text)
    with pytest.raises(MergekitLiteError) as caught:
        api.plan(joined(tmp_path / "carved"))
    assert told in " ".join(problem.what for problem in caught.value.problems)
