"""One row of a router in place of those of a group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergekit_lite.moe.fewer.statistics import Numbers
from mergekit_lite.moe.merge.groups import Group
from mergekit_lite.moe.merge.products import product, ridge


def frequency_rows(rows: Numbers, groups: Sequence[Group], counts: Numbers | None) -> Numbers:
    """Return the mean of each group's rows, by how often its experts were chosen.

    Args:
        rows: (experts, d), or a number for each expert.
        groups: in order.
        counts: tokens that chose each expert; None counts all the same.
    """
    found = []
    for group in groups:
        members = list(group.everyone)
        weights = np.ones(len(members)) if counts is None else counts[members]
        weights = weights if weights.sum() > 0 else np.ones(len(members))
        # One after the other, so that no library chooses the order of the sum.
        total = sum(w * rows[m] for w, m in zip(weights, members, strict=True))
        found.append(total / weights.sum())
    return np.stack(found)


def mass(logits: Numbers) -> Numbers:
    """Return the logarithm of the summed exponentials of each row."""
    top = logits.max(1, keepdims=True)
    return np.asarray((top + np.log(np.exp(logits - top).sum(1, keepdims=True)))[:, 0])


def lse_rows(rows: Numbers, groups: Sequence[Group], inputs: Numbers, penalty: float) -> Numbers:
    """Return rows whose logits are the logarithm of the summed exponentials of each group's.

    A softmax then gives a group the probability that its experts had together. Least squares over
    inputs, held by the penalty to a start: the mean of the group's rows by how likely each expert
    is within it, which is the slope of that logarithm on average. An expert that is alone keeps
    its row.

    Args:
        rows: (experts, d).
        groups: in order.
        inputs: (tokens, d) of the router.
        penalty: times the mean square of an input's entry, times the number of tokens.
    """
    logits = product(inputs, rows.T)
    found = np.empty((len(groups), rows.shape[1]))
    for place, group in enumerate(groups):
        members = list(group.everyone)
        if len(members) == 1:
            found[place] = rows[members[0]]
            continue
        wanted = mass(logits[:, members])
        likely = np.exp(logits[:, members] - wanted[:, None]).mean(0)
        start = sum(part * rows[m] for part, m in zip(likely, members, strict=True))
        rest = (wanted - product(inputs, start[:, None])[:, 0])[:, None]
        found[place] = start + ridge(inputs, rest, penalty)[:, 0]
    return found
