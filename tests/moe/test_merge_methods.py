"""Ways of grouping find planted groups, and rows of routers stand for those of a group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mergekit_lite import api
from mergekit_lite.calibrate.run import Settings, calibrate
from mergekit_lite.calibrate.texts import prompts
from mergekit_lite.calibrate.tokens import load_tokenizer
from mergekit_lite.errors import RecipeError
from mergekit_lite.moe.merge.align import (
    alike_by_activations,
    alike_by_both,
    alike_by_weights,
    order,
)
from mergekit_lite.moe.merge.clusters import kernel_means, medoid
from mergekit_lite.moe.merge.collapse import frequency_rows, lse_rows, mass
from mergekit_lite.moe.merge.groups import group_of
from mergekit_lite.moe.merge.methods import METHODS
from mergekit_lite.moe.merge.products import ridge
from mergekit_lite.moe.merge.refit import neurons, refitted
from mergekit_lite.moe.merge.seen import Seen
from mergekit_lite.sources import resolve
from tests.checkpoints import write_tokenizer
from tests.moe.dense import load, logits, tensor
from tests.moe.routed import make, routers

TEXTS = [" ".join(f"w{3 + (7 * i + j * j) % 90}" for j in range(30)) for i in range(8)]
TWINS = {1: 5, 2: 6, 0: 7}
"""Experts 5, 6 and 7 are 1, 2 and 0 again, with neurons in another order."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Mixtral of eight experts, three of which are there twice, and its statistics."""
    root = tmp_path_factory.mktemp("measured")
    base = make("mixtral", root / "base")
    write_tokenizer(base, 96)
    tensors = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for layer in range(3):
        start = f"model.layers.{layer}.block_sparse_moe"
        for of, twin in TWINS.items():
            at = torch.randperm(48, generator=generator)
            for part in ("w1", "w2", "w3"):
                whole = tensors[f"{start}.experts.{of}.{part}.weight"]
                cut = whole[:, at] if part == "w2" else whole[at]
                tensors[f"{start}.experts.{twin}.{part}.weight"] = cut.contiguous()
            tensors[f"{start}.gate.weight"][twin] = tensors[f"{start}.gate.weight"][of]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    calibrate(resolve(str(base), relative_to=root), prompts("a", TEXTS), root / "stats",
              kinds=("rates", "merging"), settings=Settings(length=64))  # fmt: skip
    return base, root / "stats"


def recipe(measured: tuple[Path, Path], method: str, keep: float = 5, **merge: Any) -> dict:
    base, stats = measured
    said = {"keep": keep, "method": method, "stats": str(stats), **merge}
    return {"base": str(base), "moe": {"merge": said}}


def groups(plan: Any, layer: int = 1) -> list[list[int]]:
    module = plan.moe["merged"]["modules"][f"model.layers.{layer}.block_sparse_moe"]
    return [group["experts"] for group in module["groups"]]


@pytest.mark.parametrize("method", METHODS)
def test_experts_that_are_the_same_go_together(measured: tuple[Path, Path], method: str) -> None:
    # Twins share all their tokens, so neither is chosen less often or scored lower than the other.
    plan = api.plan(recipe(measured, method, keep=0.625))
    for layer in range(3):
        found = groups(plan, layer)
        assert len(found) == 5
        assert sorted(expert for group in found for expert in group) == list(range(8))
    if method in ("hc_smoe", "sub_moe"):
        for layer in range(3):
            assert {tuple(sorted(pair)) for pair in TWINS.items()} <= set(
                map(tuple, groups(plan, layer))
            )


def test_merged_twins_say_what_they_said(measured: tuple[Path, Path], tmp_path: Path) -> None:
    """V11, and every way of aligning: experts there twice with another order of neurons."""
    base, _ = measured
    for align in ("weights", "activations", "both"):
        out = tmp_path / align
        api.run(recipe(measured, "hc_smoe", align=align), out)
        for layer in range(3):
            for new, expert in enumerate(range(5)):
                module = f"model.layers.{layer}.block_sparse_moe.experts"
                lead = expert if expert not in TWINS else None
                for part in ("w1", "w2", "w3"):
                    found = tensor(out, f"{module}.{new}.{part}.weight")
                    if lead is not None:
                        wanted = tensor(base, f"{module}.{lead}.{part}.weight")
                        assert torch.equal(found, wanted)
    first = tensor(tmp_path / "weights", "model.layers.0.block_sparse_moe.experts.1.w1.weight")
    for align in ("activations", "both"):
        other = tensor(tmp_path / align, "model.layers.0.block_sparse_moe.experts.1.w1.weight")
        torch.testing.assert_close(other, first)


def test_statistics_are_those_added_up_token_by_token(measured: tuple[Path, Path]) -> None:
    base, stats = measured
    model, seen = load(base), {"input": [], "chosen": []}
    layer = model.model.layers[1]
    layer.mlp.register_forward_pre_hook(
        lambda module, given: seen["input"].append(given[0].reshape(-1, 32))
    )
    routers(model)[1].register_forward_hook(lambda m, given, out: seen["chosen"].append(out[1:]))
    tokenizer = load_tokenizer(base)
    with torch.no_grad():
        for text in TEXTS:
            model(torch.tensor([tokenizer.encode(text)]))
        inputs = torch.cat(seen["input"])
        given = torch.zeros(len(inputs), 8)
        at = 0
        for weights, chosen in seen["chosen"]:
            given[at : at + len(weights)].scatter_(1, chosen, weights)
            at += len(weights)
        said = []
        experts = layer.mlp.experts
        for wide, down in zip(experts.gate_up_proj, experts.down_proj, strict=True):
            gate, up = (inputs @ wide.T).chunk(2, 1)
            said.append(torch.nn.functional.silu(gate) * up @ down.T)
    outputs = torch.stack(said, 1)
    unit = outputs / outputs.norm(dim=2, keepdim=True)
    found = load_file(stats / "merging" / "layer-00001.safetensors")
    near = {"rtol": 1e-4, "atol": 1e-5}
    for key, wanted in {
        "inputs": inputs,
        "given": given,
        "said": outputs.mean(0).double(),
        "gated": (outputs * given[:, :, None]).mean(0).double(),
        "cosines": torch.einsum("tnd,tmd->nm", unit, unit).double() / len(inputs),
    }.items():
        torch.testing.assert_close(found[f"model.layers.1.mlp.gate.{key}"], wanted, **near)
    sampled = found["model.layers.1.mlp.gate.activations"]
    gate, up = (inputs @ experts.gate_up_proj[3].T).chunk(2, 1)
    torch.testing.assert_close(sampled[3], torch.nn.functional.silu(gate) * up, **near)


def seen_of(frequency: list[float], saliency: list[float], **found: Any) -> Seen:
    known = {name: np.asarray(value, float) for name, value in found.items()}
    return Seen(np.asarray(frequency), np.asarray(saliency), known, 16)


def test_ream_leads_take_in_their_nearest_in_the_order_of_their_scores() -> None:
    said = [[1, 0], [0, 1], [0.9, 0.1], [0.8, 0.3], [0.1, 1]]
    seen = seen_of([1] * 5, [5, 9, 1, 2, 3], gated=said, logit_gram=np.eye(5))
    assert METHODS["ream"].groups(seen, 2) == [[1, 4, 3, 2], [0]]
    few = Seen(seen.frequency, seen.saliency, seen.measured, 3)
    assert METHODS["ream"].groups(few, 2) == [[1, 4, 3], [0, 2]]


def test_m_smoe_joins_those_whose_logits_go_together() -> None:
    logit = np.array([[3.0, 0, 1], [0, 1, 0], [2, 0.1, 1], [0, 1, 0.2]])
    seen = seen_of([9, 8, 1, 2], [0] * 4, logit_gram=logit @ logit.T)
    assert METHODS["m_smoe"].groups(seen, 2) == [[0, 2], [1, 3]]


def test_hc_smoe_is_average_linkage_and_its_middle_leads() -> None:
    seen = seen_of([1] * 6, [1] * 6, said=[[0, 0], [10, 0], [1, 0], [11, 0], [2, 0], [50, 50]])
    assert METHODS["hc_smoe"].groups(seen, 3) == [[2, 0, 4], [1, 3], [5]]


def test_spectral_clusters_are_blocks_of_the_affinity() -> None:
    logit = np.array([[1.0, 0.1], [-1, 0.2], [1, 0.05], [-1, 0.0], [0.9, 0.1]])
    seen = seen_of([1, 5, 2, 6, 3], [0] * 5, logit_gram=logit @ logit.T)
    assert sorted(METHODS["uncurl"].groups(seen, 2)) == [[3, 1], [4, 2, 0]]


@settings(max_examples=40)
@given(st.integers(2, 9), st.data())
def test_clusters_are_as_many_as_wanted_and_hold_everything_once(size: int, data: Any) -> None:
    values = st.integers(-2, 2)
    points = np.array([[data.draw(values), data.draw(values)] for _ in range(size)], float)
    count = data.draw(st.integers(1, size))
    found = kernel_means(points @ points.T, count, data.draw(st.integers(0, size - 1)))
    assert len(found) == count
    assert all(found)
    assert sorted(at for members in found for at in members) == list(range(size))


def test_the_medoid_is_nearest_to_the_mean() -> None:
    points = np.array([[0.0], [1.0], [5.0], [2.0]])
    assert medoid(points @ points.T, [0, 1, 2, 3]) == 3


def test_a_group_weighs_what_it_was_chosen_and_all_the_same_if_never() -> None:
    """V11: weights add up to 1."""
    assert group_of([3, 1], [0, 3, 0, 1]).shares() == (0.75, 0.25)
    assert group_of([3, 1], [0, 3, 0, 0]).members == (1,)
    assert group_of([3, 1], [0, 0, 9, 0]).shares() == (0.5, 0.5)


def test_rows_of_a_group_that_are_the_same_collapse_to_it() -> None:
    """V12: centroid, frequency and the fitted row less the logarithm of how many there were."""
    rows = np.array([[1.0, -2, 3], [0.5, 1, 0], [1, -2, 3], [1, -2, 3]])
    group = group_of([2, 0, 3], [1, 1, 5, 2])
    inputs = np.random.default_rng(0).normal(size=(50, 3))
    logit = inputs @ rows.T
    (frequency,) = frequency_rows(rows, [group], np.array([1.0, 1, 5, 2]))
    np.testing.assert_allclose(frequency, rows[group.lead])
    wanted = mass(logit[:, [0, 2, 3]]) - np.log(3)
    np.testing.assert_allclose(wanted, inputs @ rows[group.lead])
    np.testing.assert_allclose(ridge(inputs, wanted[:, None], 1e-12)[:, 0], rows[group.lead])
    # With an entry that is 1 for every token, a row can say the logarithm itself.
    constant = np.hstack([inputs, np.ones((50, 1))])
    wide = np.hstack([rows, np.zeros((4, 1))])
    fitted = lse_rows(wide, [group, group_of([1], [1] * 4)], constant, 1e-12)
    np.testing.assert_allclose(fitted[0], [1, -2, 3, np.log(3)], atol=1e-8)
    np.testing.assert_array_equal(fitted[1], wide[1])


def test_fitted_rows_keep_the_mass_of_groups_better_than_other_rows() -> None:
    generator = np.random.default_rng(1)
    inputs = generator.normal(size=(400, 12)) + generator.normal(size=12)
    rows = generator.normal(size=(6, 12)) / 3
    rows[3:] = rows[:3] + generator.normal(size=(3, 12)) / 8
    own = [group_of([e, e + 3], [1.0] * 6) for e in range(2)] + [group_of([2], [1.0] * 6)]
    own.append(group_of([5], [1.0] * 6))

    def softmax(values: np.ndarray) -> np.ndarray:
        found = np.exp(values - values.max(1, keepdims=True))
        return found / found.sum(1, keepdims=True)

    whole = softmax(inputs @ rows.T)
    wanted = np.stack([whole[:, list(group.everyone)].sum(1) for group in own], 1)
    apart = {
        name: np.abs(softmax(inputs @ found.T) - wanted).sum(1).mean()
        for name, found in {
            "centroid": rows[[group.lead for group in own]],
            "frequency": frequency_rows(rows, own, None),
            "lse": lse_rows(rows, own, inputs, 1e-4),
        }.items()
    }
    assert apart["lse"] < 0.5 * min(apart["centroid"], apart["frequency"])


def expert_of(generator: np.random.Generator, width: int = 10, d: int = 6) -> dict[str, Any]:
    shapes = {"gate": (width, d), "up": (width, d), "down": (d, width)}
    return {key: generator.normal(size=s).astype(np.float32) for key, s in shapes.items()}


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_an_expert_in_another_order_is_put_back(seed: int) -> None:
    """The output does not depend on the order of neurons (10.16), and aligning finds it."""
    generator = np.random.default_rng(seed)
    lead, at = expert_of(generator), generator.permutation(10)
    other = {"gate": lead["gate"][at], "up": lead["up"][at], "down": lead["down"][:, at]}
    inputs = generator.normal(size=(30, 6)).astype(np.float32)
    said = [neurons(own, inputs) @ own["down"].T for own in (lead, other)]
    np.testing.assert_allclose(said[0], said[1], atol=1e-4)
    back = order(alike_by_weights(lead, other))
    np.testing.assert_array_equal(at[back], np.arange(10))
    by_use = alike_by_activations(neurons(lead, inputs), neurons(other, inputs))
    np.testing.assert_array_equal(order(by_use), back)


def test_weights_and_activations_count_the_same_together() -> None:
    """Neurons 0 and 1 have the same weights and say other things; 2 and 3 the other way round."""
    generator = np.random.default_rng(4)
    lead = expert_of(generator, width=4)
    for part in ("gate", "up"):
        lead[part][1] = lead[part][0]
    lead["down"][:, 1] = lead["down"][:, 0]
    said = generator.normal(size=(20, 4)).astype(np.float32)
    said[:, 3] = said[:, 2]
    at = np.array([2, 0, 3, 1])
    other = {
        "gate": 9 * lead["gate"][at],
        "up": 9 * lead["up"][at],
        "down": 9 * lead["down"][:, at],
    }
    alike = alike_by_both(lead, other, alike_by_activations(said, said[:, at]))
    np.testing.assert_array_equal(order(alike), [1, 3, 0, 2])
    np.testing.assert_allclose(np.diagonal(alike[:, [1, 3, 0, 2]]), 2, rtol=1e-5)


def test_the_assignment_is_best_in_sum_where_nearest_ones_clash() -> None:
    alike = np.array([[3.0, 2.9, 0], [3, 0, 0], [0, 1, 1]], np.float32)
    np.testing.assert_array_equal(order(alike), [1, 0, 2])


def test_a_refitted_projection_says_what_the_group_said() -> None:
    generator = np.random.default_rng(2)
    first, second = expert_of(generator), expert_of(generator)
    second = {key: first[key] + 0.2 * second[key] for key in first}
    inputs = generator.normal(size=(300, 6)).astype(np.float32)
    given = np.abs(generator.normal(size=(300, 3))).astype(np.float32)
    given[::3, 1:] = 0
    merged = {key: (first[key] + second[key]) / 2 for key in first}
    found = refitted(merged, {1: first, 2: second}, inputs, given, 1e-6)

    passed = given[:, 1] > 0
    wanted = sum(
        given[passed, e, None] * (neurons(own, inputs[passed]) @ own["down"].T)
        for e, own in ((1, first), (2, second))
    )
    weight = given[passed, 1:].sum(1, keepdims=True)
    hidden = neurons(merged, inputs[passed])
    apart = [weight * (hidden @ down.T) - wanted for down in (merged["down"], found)]
    assert np.square(apart[1]).sum() < 0.9 * np.square(apart[0]).sum()
    # What is left cannot be said by any down projection.
    left, before = (np.abs((weight * hidden).T @ each).max() for each in apart[::-1])
    assert left < 1e-3 * before
    assert np.array_equal(refitted(merged, {0: first}, inputs, 0 * given, 1), merged["down"])


def test_every_part_together_makes_a_model_that_loads(
    measured: tuple[Path, Path], tmp_path: Path
) -> None:
    said = recipe(measured, "ream", align="both", router="lse", refit_down="ridge")
    api.run(said, tmp_path / "out")
    api.run(said, tmp_path / "again", threads=2)
    assert torch.isfinite(logits(tmp_path / "out")).all()
    for file in ("model.safetensors", "moe_manifest.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_statistics_that_lack_something_or_do_not_fit_are_refused(
    measured: tuple[Path, Path], tmp_path: Path
) -> None:
    base, _ = measured
    calibrate(resolve(str(base), relative_to=tmp_path), prompts("a", TEXTS[:2]), tmp_path / "few",
              kinds=("rates",), settings=Settings(length=32))  # fmt: skip

    def refused(*given: Any, **merge: Any) -> str:
        with pytest.raises(RecipeError) as caught:
            api.plan(recipe(*given, **merge))
        return "\n".join(f"{p.what} [{p.hint}]" for p in caught.value.problems)

    assert "no statistics `merging` of layer 0" in refused((base, tmp_path / "few"), "ream")
    assert "largest: 4" in refused(measured, "ream", keep=2, largest=2)
    other = make("mixtral", tmp_path / "other", num_local_experts=4)
    assert "speaks of 8 experts" in refused((other, measured[1]), "m_smoe", keep=2)
    glm = make("glm4_moe", tmp_path / "glm")
    text = refused((glm, measured[1]), "listed", keep=None, groups=[[1, 2]], router="lse")
    assert "take sigmoids" in text
