"""Parts of a graph of fixed sizes, with as much weight inside as no exchange can better."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergekit_lite.moe.carve.coactivation import together
from mergekit_lite.moe.carve.partition import partition
from tests.moe.test_carve_splits import layer_of

Floats = NDArray[np.float32]


def weight(edges: Floats, nodes: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Return what edges inside of parts weigh."""
    same = labels[:, None] == labels[None]
    return float((edges[np.ix_(nodes, nodes)].astype(float) * same).sum())


@given(st.integers(2, 24), st.integers(1, 5), st.integers(0, 1000))
def test_no_exchange_of_two_nodes_makes_parts_heavier(nodes: int, parts: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = np.maximum(random.standard_normal((12, nodes + 4)), 0).astype(np.float32)
    edges = vectors.T @ vectors
    kept = np.sort(random.permutation(nodes + 4)[:nodes])
    sizes = np.bincount(random.integers(0, parts, nodes), minlength=parts)
    labels = partition(edges, kept, sizes.tolist())
    assert np.bincount(labels, minlength=parts).tolist() == sizes.tolist()
    found = weight(edges, kept, labels)
    for one, other in combinations(range(nodes), 2):
        changed = labels.copy()
        changed[[one, other]] = labels[[other, one]]
        assert weight(edges, kept, changed) <= found * (1 + 1e-4)


def test_planted_parts_are_found_whatever_the_order() -> None:
    random = np.random.default_rng(3)
    owner = random.permutation(np.repeat(np.arange(4), [8, 8, 8, 8]))
    firing = (owner[None] == np.arange(4).repeat(50)[:, None]) & (random.random((200, 32)) < 0.6)
    vectors = (firing + 0.05 * random.random((200, 32))).astype(np.float32)
    labels = partition(vectors.T @ vectors, np.arange(32), [8, 8, 8, 8])
    for part in range(4):
        assert len(set(labels[owner == part].tolist())) == 1


def test_an_edge_is_what_two_neurons_say_together() -> None:
    layer = layer_of(30, tokens=1500)  # more than are looked at together
    x = layer.seen().astype(float)
    gate = x @ layer.gate.T
    said = np.abs(gate / (1 + np.exp(-gate)) * (x @ layer.up.T))
    said *= said >= np.sort(said, axis=1)[:, -3:-2]  # the tenth that fires
    np.testing.assert_allclose(together(layer), said.T @ said, rtol=1e-3)
