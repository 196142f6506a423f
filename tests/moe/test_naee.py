"""V13: the search finds what a search by running the layer itself finds, and what is useless."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_lite import api
from mergekit_lite.calibrate.run import Settings, calibrate
from mergekit_lite.calibrate.texts import prompts
from mergekit_lite.calibrate.tokens import load_tokenizer
from mergekit_lite.moe.fewer.statistics import layer_statistics
from mergekit_lite.moe.prune.naee import Layer, search
from mergekit_lite.sources import resolve
from tests.checkpoints import write_tokenizer
from tests.moe.dense import load, logits
from tests.moe.routed import make, masked_logits, masked_router, routers

DEAD = (2, 5)
WORDS = [" ".join(f"w{3 + (5 * i + j * j) % 90}" for j in range(25)) for i in range(4)]


@pytest.fixture(scope="module", params=["mixtral", "glm4_moe"])
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a routed model with two dead experts, and its statistics. Read only."""
    root = tmp_path_factory.mktemp(request.param)
    base = make(request.param, root / "base")
    write_tokenizer(base, 96)
    tensors = load_file(base / "model.safetensors")
    for name in tensors:
        if any(f"experts.{e}.{part}." in name for e in DEAD for part in ("w2", "down_proj")):
            tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    calibrate(
        resolve(str(base), relative_to=root),
        prompts("a", WORDS),
        root / "stats",
        kinds=("outputs",),
        settings=Settings(length=64),
    )
    return root


def by_running(base: Path, keep: int) -> tuple[tuple[int, ...], float]:
    """Return the best subset of layer 1 by running the module itself with every subset."""
    model, tokenizer = load(base), load_tokenizer(base)
    network = model.model.layers[1].mlp
    seen: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda module, given: seen.append(given[0].reshape(-1, 32)))
    with torch.no_grad():
        for line in WORDS:
            model(torch.tensor([tokenizer.encode(line)]))
        rows = torch.cat(seen)
        whole = network(rows[None])
        losses = {}

        for subset in combinations(range(8), keep):
            gone = [expert for expert in range(8) if expert not in subset]
            routers(model)[1].forward = masked_router(routers(model)[1], gone)
            losses[subset] = float((network(rows[None]) - whole).norm())
    best = min(losses, key=lambda subset: losses[subset])
    return best, losses[best]


def test_the_search_is_that_of_running_every_subset(measured: Path) -> None:
    found = layer_statistics(measured / "stats", "outputs", 1)
    best, loss = by_running(measured / "base", 5)
    layer = Layer(found, 2)
    nearest = search(layer, 5)
    assert nearest.kept == best
    scale = float(found["given"].sum() / layer.whole.sum())
    assert nearest.distance * np.sqrt(layer.size()) * scale == pytest.approx(loss, rel=1e-3)
    assert nearest.search == "exhaustive"


def test_experts_that_say_nothing_go_first_where_weights_need_not_add_up() -> None:
    generator = np.random.default_rng(0)
    said = generator.normal(size=(200, 6, 16))
    said[:, [1, 4]] = 0
    logits = generator.normal(size=(200, 6))
    # Weights that are not made to add up again: what a dead expert took is lost to nobody.
    logits[:, [1, 4]] -= 50
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    given = np.where(np.argsort(np.argsort(-scores)) < 2, scores, 0)
    measured = {
        "logits": logits,
        "given": given,
        "products": said @ said.transpose(0, 2, 1),
        "bias": np.zeros(6),
    }
    nearest = search(Layer(measured, 2), 4)
    assert nearest.kept == (0, 2, 3, 5)
    assert nearest.distance < 1e-6


def test_greedy_leaves_out_one_at_a_time() -> None:
    generator = np.random.default_rng(1)
    said = generator.normal(size=(64, 20, 8)) * np.linspace(0, 1, 20)[:, None]
    logits = generator.normal(size=(64, 20))
    scores = np.exp(logits)
    given = np.where(np.argsort(np.argsort(-scores)) < 3, scores, 0)
    measured = {
        "logits": logits,
        "given": given / given.sum(1, keepdims=True),
        "products": said @ said.transpose(0, 2, 1),
        "bias": np.zeros(20),
    }
    layer = Layer(measured, 3)
    nearest = search(layer, 18)
    assert nearest.search == "greedy"
    singles = 1 - np.eye(20)
    first = int(np.argmin(layer.distances(singles.astype(bool))))
    assert first not in nearest.kept
    pairs = singles * singles[first]
    pairs = np.delete(pairs, first, 0).astype(bool)
    second = int(np.delete(np.arange(20), first)[np.argmin(layer.distances(pairs))])
    assert nearest.kept == tuple(e for e in range(20) if e not in (first, second))


def test_kinds_that_run_experts_do_not_disturb_each_other(measured: Path, tmp_path: Path) -> None:
    base = resolve(str(measured / "base"), relative_to=tmp_path)
    settings = Settings(length=64)
    for kinds in (("rates",), ("rates", "outputs")):
        calibrate(base, prompts("a", WORDS), tmp_path / "-".join(kinds), kinds=kinds,
                  settings=settings)  # fmt: skip
    both = tmp_path / "rates-outputs"
    for kind, alone in (("rates", tmp_path / "rates"), ("outputs", measured / "stats")):
        wanted = layer_statistics(alone, kind, 2)
        found = layer_statistics(both, kind, 2)
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_a_recipe_that_searches(measured: Path, tmp_path: Path) -> None:
    recipe = {
        "base": str(measured / "base"),
        "moe": {"prune": {"keep": 5, "method": "naee", "stats": str(measured / "stats")}},
    }
    plan = api.plan(recipe)
    modules = plan.moe["pruned"]["modules"]
    kept = {own["layer"]: tuple(own["kept"]) for own in modules.values()}
    api.run(recipe, tmp_path / "out")

    kept.setdefault(0, ())
    expected = masked_logits(measured / "base", kept)
    assert float((logits(tmp_path / "out") - expected).abs().max()) < 5e-5
