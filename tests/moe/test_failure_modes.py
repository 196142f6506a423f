"""What goes wrong with routed models, by number: each is refused with its place, or warned of.

The numbers are those of the tests' comments elsewhere: F1 to F5 are in `test_identity.py`,
`test_assemble.py` and `test_compat.py`, F6 in `tests/calibrate/test_collect.py`, F7 in
`tests/calibrate/test_probe.py`, F8 in `test_ridge.py`, F10, F13 and F17 in `test_robust.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mergekit_lite import api
from mergekit_lite.checkpoint import read_checkpoint
from mergekit_lite.cli.main import main
from tests.moe import dense as models
from tests.moe.routed import make
from tests.moe.test_identity import copies

Dense = Callable[..., Path]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A routed model whose routers choose one of two groups first. Read only."""
    return make("glm4_moe", tmp_path_factory.mktemp("grouped") / "glm", n_group=2, topk_group=1)


REFUSED: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "F1": ("deepseek_v2", {"gate": "random", "experts_per_token": 1}, "do not add up to 1"),
    "F9 zeros": ("llama", {"gate": "zeros", "experts_per_token": 1}, "leave it to chance"),
    "F9 texts": (
        "llama",
        {"experts": [{"expert": "math", "prompts": ["x"]}, {"expert": "code", "prompts": ["x"]}]},
        "all experts have the same texts",
    ),
    "F20": ("llama", {"gate": "random", "experts_per_token": 3}, "cannot pass 3 of 2 experts"),
    "F22 phimoe": ("llama", {"gate": "random", "target": "phimoe"}, "is no family"),
    "F22 llama4": ("llama", {"gate": "random", "target": "llama4"}, "is no family"),
}


@pytest.mark.parametrize("number", REFUSED)
def test_refused_with_its_place(dense: Dense, tmp_path: Path, number: str) -> None:
    family, moe, words = REFUSED[number]
    recipe = {
        "base": str(dense(family)),
        "experts": {"math": str(dense(family, 1)), "code": str(dense(family, 2))},
        "moe": moe,
    }
    shown = planned(recipe, tmp_path)
    assert shown.exit_code == 2
    assert words in shown.stderr
    assert "recipe.yaml:" in shown.stderr


def test_refused_of_routed_bases(grouped: Path, tmp_path: Path) -> None:
    prune = {"keep": 5, "method": "random"}
    shown = planned({"base": str(grouped), "moe": {"prune": prune}}, tmp_path)
    assert (shown.exit_code, "choose among 2 groups" in shown.stderr) == (2, True)  # F14
    prune = {"keep": 4, "method": "random"}
    recipe = {"base": str(grouped), "moe": {"experts_per_token": 3, "prune": prune}}
    shown = planned(recipe, tmp_path)  # F20: the chosen group has two experts left
    assert (shown.exit_code, "cannot pass 3" in shown.stderr) == (2, True)


def planned(recipe: dict[str, Any], folder: Path) -> Any:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1))
    return CliRunner().invoke(main, ["plan", str(path)])


def warnings(recipe: dict[str, Any]) -> str:
    return "\n".join(api.plan(recipe).warnings)


def test_routers_that_training_cannot_reach(dense: Dense) -> None:
    """Shows F25: one expert a token, whose weight is always 1."""
    words = "training gives the routers no gradient"
    assert words in warnings(copies(dense("llama"), "mixtral", experts_per_token=1))
    assert words not in warnings(copies(dense("llama"), "mixtral"))
    alone = copies(dense("llama"), "mixtral", experts=["base"], experts_per_token=1)
    assert words not in warnings(alone)


def test_router_logits_that_training_left_on(grouped: Path, tmp_path: Path) -> None:
    """Shows F21, of bases whose config is taken over."""
    base = tmp_path / "base"
    shutil.copytree(grouped, base)
    prune = {"prune": {"keep": 4, "method": "random"}}
    assert "output_router_logits" not in warnings({"base": str(base), "moe": prune})
    changed = {**models.config(base), "output_router_logits": True}
    (base / "config.json").write_text(json.dumps(changed))
    assert "`output_router_logits: true`" in warnings({"base": str(base), "moe": prune})


def test_experts_of_another_chat_template(dense: Dense, tmp_path: Path) -> None:
    """Shows F12, with the tokens that end texts in `test_robust.py`."""
    other = tmp_path / "other"
    shutil.copytree(dense("llama", 1), other)
    recipe = {
        "base": str(dense("llama")),
        "experts": {"a": str(other), "b": str(dense("llama", 2))},
        "moe": {"gate": "random"},
    }
    assert "chat template" not in warnings(recipe)
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert "`a` has another chat template" in warnings(recipe)


def test_copies_are_bytes_of_their_own(dense: Dense, tmp_path: Path) -> None:
    """Shows F23: no two tensors share bytes, which loaders that map one by one would trip over."""
    api.run(copies(dense("llama"), "mixtral"), tmp_path / "routed")
    header = read_checkpoint(tmp_path / "routed")
    found = sorted((one.file, one.start, one.nbytes) for one in header.tensors.values())
    ends = [(file, start + nbytes) for file, start, nbytes in found]
    for end, (file, start, _) in zip(ends, found[1:], strict=False):
        assert end <= (file, start)
    assert sum(nbytes for *_, nbytes in found) > 2 * dense_bytes(dense("llama"))


def dense_bytes(folder: Path) -> int:
    return sum(one.nbytes for one in read_checkpoint(folder).tensors.values())


def test_weights_that_do_not_add_up_can_be_made_up_for(dense: Dense, tmp_path: Path) -> None:
    """Shows 4.2: with gates of zeros and weights of 1/N, N/k times the down projection is exact."""
    experts = [{"expert": "base", "residual_scale": 2.0}] * 4
    out = tmp_path / "routed"
    api.run(copies(dense("qwen2"), "qwen2_moe", experts=experts, gate="zeros"), out)
    changed = {**models.config(out), "norm_topk_prob": False}
    (out / "config.json").write_text(json.dumps(changed))
    assert models.apart(dense("qwen2"), out) < 5e-6
    (out / "config.json").write_text(json.dumps({**changed, "norm_topk_prob": True}))
    assert models.apart(dense("qwen2"), out) > 0.1
