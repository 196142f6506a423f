"""Which neurons go together, and what chooses among slices, on layers made for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mergekit_lite.moe.carve._layer import Layer, Shares, width_of
from mergekit_lite.moe.carve.balanced import assign
from mergekit_lite.moe.carve.gradient import token_groups
from mergekit_lite.moe.carve.make import METHODS, order_of
from mergekit_lite.moe.carve.routers import contributions, nearest_parts, router

Floats = NDArray[np.float32]


def layer_of(neurons: int, width: int = 12, tokens: int = 60, seed: int = 0) -> Layer:
    random = np.random.default_rng(seed)

    def matrix(*shape: int) -> Floats:
        return random.standard_normal(shape).astype(np.float32)

    gate, up, down = matrix(neurons, width), matrix(neurons, width), matrix(width, neurons)

    def slopes(labels: NDArray[np.int64], groups: int) -> NDArray[np.float64]:
        return np.abs(random.standard_normal((groups, neurons)))

    return Layer(gate, up, down, matrix(tokens, width), seed, slopes)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 1000), st.booleans())
def test_groups_of_fixed_sizes_cost_as_little_as_an_assignment(
    items: int, groups: int, seed: int, whole: bool
) -> None:
    random = np.random.default_rng(seed)
    costs = random.standard_normal((items, groups))
    if whole:  # many ties
        costs = np.round(2 * costs)
    sizes = np.bincount(random.integers(0, groups, items), minlength=groups)
    labels = assign(costs, sizes.tolist())
    assert np.bincount(labels, minlength=groups).tolist() == sizes.tolist()
    repeated = np.repeat(costs, sizes, axis=1)
    rows, columns = linear_sum_assignment(repeated)
    found = costs[np.arange(items), labels].sum()
    np.testing.assert_allclose(found, repeated[rows, columns].sum(), atol=1e-9)


def test_groups_must_hold_all_items() -> None:
    with pytest.raises(ValueError, match="3 places for 4 items"):
        assign(np.zeros((4, 2)), [1, 2])


@pytest.mark.parametrize("method", sorted(METHODS))
@given(neurons=st.integers(8, 40), slices=st.integers(2, 8), data=st.data())
def test_every_neuron_goes_to_one_slice(
    method: str, neurons: int, slices: int, data: st.DataObject
) -> None:
    shared = data.draw(st.integers(0, slices - 1))
    shares = Shares.of(neurons, slices, shared)
    split = METHODS[method](layer_of(neurons), shares)
    assert len(split.shared) == shares.shared
    assert tuple(map(len, split.routed)) == shares.routed
    order = order_of(split, neurons, slices)
    assert len(order) == slices * width_of(neurons, slices)
    assert sorted(order[order < neurons]) == list(range(neurons))


def planted(clusters: int = 3, each: int = 8) -> tuple[Layer, NDArray[np.int64]]:
    """Return a layer whose neurons fire for one of so many topics, and the topic of each."""
    random = np.random.default_rng(1)
    width = 16
    topics = np.linalg.qr(random.standard_normal((width, width)))[0][:clusters]
    owner = random.permutation(np.repeat(np.arange(clusters), each))
    noise = 0.05 * random.standard_normal((2, clusters * each, width))
    gate, up = (topics[owner] + noise[0]), (topics[owner] + noise[1])
    down = random.standard_normal((width, clusters * each))
    inputs = topics[np.arange(90) % clusters] * 4 + 0.1 * random.standard_normal((90, width))
    arrays = [x.astype(np.float32) for x in (gate, up, down, inputs)]
    return Layer(arrays[0], arrays[1], arrays[2], arrays[3], key=5), owner


@pytest.mark.parametrize("method", ["cmoe", "kmeans"])
def test_neurons_of_a_topic_are_found(method: str) -> None:
    layer, owner = planted()
    split = METHODS[method](layer, Shares.of(layer.neurons, 3, 0))
    found = sorted((set(owner[own].tolist()) for own in split.routed), key=min)
    if method == "cmoe":
        # The first centres may be of one topic, and are not moved.
        assert sum(len(topics) == 1 for topics in found) >= 1
    else:
        assert found == [{0}, {1}, {2}]


def test_neurons_that_fire_together_go_together() -> None:
    # A tenth of the neurons fires for a token: all of its topic.
    layer, owner = planted(clusters=10, each=4)
    split = METHODS["coactivation"](layer, Shares.of(layer.neurons, 10, 0))
    assert sorted(set(owner[own].tolist()).pop() for own in split.routed) == list(range(10))
    assert all(len(set(owner[own].tolist())) == 1 for own in split.routed)


def test_each_group_of_tokens_has_the_neurons_that_matter_to_it() -> None:
    layer, owner = planted(clusters=4, each=6)
    topics = np.arange(90) % 4
    labels = token_groups(layer.seen(), 4, key=3)
    assert len({(int(a), int(b)) for a, b in zip(labels, topics, strict=True)}) == 4

    def slopes(labels: NDArray[np.int64], groups: int) -> NDArray[np.float64]:
        found = np.full((groups, layer.neurons), 0.01)
        for group in range(groups):
            found[group, owner == topics[labels == group][0]] = 1 + group  # parts, not sums, count
        found[:, :3] = 2.5  # matter to all
        return found

    split = METHODS["gradient"](replace(layer, key=3, slopes=slopes), Shares(3, (6, 5, 5, 5)))
    assert split.shared.tolist() == [0, 1, 2]
    for own in split.routed:
        most = np.bincount(owner[own]).max()
        assert most >= len(own) - 2  # as far as there is room


def test_tokens_fewer_than_groups_are_still_grouped() -> None:
    inputs = np.eye(3, 8, dtype=np.float32)
    assert token_groups(inputs, 5, key=0).max() < 5


def test_shared_neurons_are_those_that_fire_most_often() -> None:
    layer, owner = planted(clusters=3, each=12)
    # All texts are about one topic, whose neurons are then the ones to share.
    one = layer.seen()[::3]
    split = METHODS["cmoe"](
        Layer(layer.gate, layer.up, layer.down, one, key=0), Shares(10, (13, 13))
    )
    assert set(owner[split.shared].tolist()) == {0}


def test_a_fitted_router_chooses_the_slices_that_contribute_most() -> None:
    layer, _ = planted()
    split = METHODS["kmeans"](layer, Shares.of(layer.neurons, 3, 0))
    wanted = contributions(layer, split)
    by_hand = [np.linalg.norm(layer.down[:, own] @ _active(layer, 7)[own]) for own in split.routed]
    np.testing.assert_allclose(wanted[7], by_hand, rtol=1e-4)
    fitted = router("ridge", layer, split, per_token=1, penalty=0.01)
    assert (fitted.agreement or 0) > 0.95
    chance = router("random", layer, split, per_token=1, penalty=0.01)
    assert (chance.agreement or 1) < 0.7
    assert abs(fitted.rows.sum(0)).max() < 1e-9
    assert fitted.epsilon() * fitted.largest <= 0.01 < 2 * fitted.epsilon() * fitted.largest


def test_slices_are_labelled_by_how_near_they_are_to_their_part_of_the_whole() -> None:
    layer = layer_of(24, tokens=70)
    split = METHODS["contiguous"](layer, Shares.of(24, 5, 1))
    labels = nearest_parts(layer, split, 2)
    assert labels.shape == (70, 4)
    assert (labels.sum(1) == 2).all()
    said = np.stack([layer.down[:, own] @ _active(layer, 9)[own] for own in split.routed])
    distances = np.square(said - said.sum(0) * 2 / 4).sum(1)
    assert set(np.flatnonzero(labels[9])) == set(np.argsort(distances)[:2])
    fitted = router("factor", layer, split, per_token=2, penalty=1e-6)
    assert fitted.agreement is not None
    chosen = np.argsort(-(layer.seen() @ fitted.rows.T), axis=1)[:, :2]
    right = np.take_along_axis(labels, chosen, axis=1).mean()
    assert right > 0.6  # chance: 0.5
    same = router("ridge", layer, split, per_token=2, penalty=1e-6)
    assert not np.allclose(same.rows, fitted.rows)


def _active(layer: Layer, token: int) -> Floats:
    x = layer.seen()[token]
    gate = layer.gate @ x
    found: Floats = gate / (1 + np.exp(-gate)) * (layer.up @ x)
    return found
