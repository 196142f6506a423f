"""M-SMoE: the experts that are chosen most take in those that are chosen for the same tokens."""

from __future__ import annotations

from mergekit_lite.moe.merge.seen import Seen, cosines_of_products, ranked


def m_smoe(seen: Seen, keep: int) -> list[list[int]]:
    """Return groups; the first of each leads.

    The `keep` experts that most tokens chose lead; each of the others joins the one whose logits,
    over tokens, have the largest cosine with its own. The paper has one budget for the whole model,
    which no config can say: here every layer has as many.
    """
    by_count = ranked(seen.frequency)
    alike = cosines_of_products(seen.measured["logit_gram"])
    groups = {lead: [lead] for lead in by_count[:keep]}
    for expert in sorted(by_count[keep:]):
        lead = max(groups, key=lambda lead: (alike[lead, expert], -lead))
        groups[lead].append(expert)
    return list(groups.values())
