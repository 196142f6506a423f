"""REAM: few leading experts take in those that are most like them."""

from __future__ import annotations

from mergekit_lite.moe.merge.seen import Seen, cosines, cosines_of_products, ranked


def ream(seen: Seen, keep: int) -> list[list[int]]:
    """Return groups; the first of each leads.

    The `keep` experts of the highest REAP score lead. In descending order of it, each takes in the
    nearest ones that are left, up to `largest` in all, so that most lead nobody. Alike are experts
    by the mean of two cosines: of the means of what they say times their weight, and of their
    logits, over tokens; both counted from 0 to 1.
    """
    by_score = ranked(seen.saliency)
    leads, left = by_score[:keep], set(by_score[keep:])
    said, logits = seen.measured["gated"], seen.measured["logit_gram"]
    alike = (2 + cosines(said) + cosines_of_products(logits)) / 4
    groups = []
    for lead in leads:
        near = sorted(left, key=lambda expert: (-alike[lead, expert], expert))
        taken = near[: seen.largest - 1]
        left.difference_update(taken)
        groups.append([lead, *taken])
    return groups
