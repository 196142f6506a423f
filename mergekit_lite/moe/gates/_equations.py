"""The normal equations of a ridge gate, which new experts can be added to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergekit_lite.moe.gates._measure import Array, LayerSums


@dataclass(frozen=True)
class Equations:
    """Sums from which the rows of one router follow; those of separate texts add up.

    Attributes:
        gram: (d, d) sum of x x^T over all tokens, each weighted as its topic is.
        totals: (experts, d) sum of x over the tokens of each expert, weighted likewise.
        counts: (experts,) tokens of each expert.
        weight: sum of the weights of all tokens.
    """

    gram: Array
    totals: Array
    counts: Array
    weight: float

    @property
    def pooled(self) -> Array:
        """Weighted mean of x x^T over tokens."""
        return self.gram / self.weight

    @classmethod
    def of(cls, sums: LayerSums, experts: Sequence[int], *, balanced: bool) -> Equations:
        """Return the equations of topics.

        Args:
            sums: of the topics.
            experts: of each topic its expert.
            balanced: let each topic count alike, however many tokens it has; otherwise experts
                with more text win more tokens.
        """
        import numpy as np

        weights = 1 / np.maximum(sums.count, 1) if balanced else np.ones_like(sums.count)
        totals = np.zeros((max(experts) + 1, sums.total.shape[1]))
        counts = np.zeros(len(totals))
        gram = np.zeros_like(sums.gram[0])
        for topic, expert in enumerate(experts):
            gram += weights[topic] * sums.gram[topic]
            totals[expert] += weights[topic] * sums.total[topic]
            counts[expert] += sums.count[topic]
        return cls(gram, totals, counts, float((weights * sums.count).sum()))

    def extended(self, more: Equations) -> Equations:
        """Return the equations with further experts behind the ones that are there."""
        import numpy as np

        return Equations(
            self.gram + more.gram,
            np.concatenate([self.totals, more.totals]),
            np.concatenate([self.counts, more.counts]),
            self.weight + more.weight,
        )

    def rows(self, penalty: float, *, normalize: bool) -> Array:
        """Return the rows whose logits come nearest to 1 for a token's own expert, 0 for others.

        Args:
            penalty: added to the diagonal, over the mean of the diagonal.
            normalize: give each row the norm 1.
        """
        import numpy as np

        damped = self.gram.copy()
        damped[np.diag_indices_from(damped)] += penalty * np.trace(self.gram) / len(self.gram)
        found = np.linalg.solve(damped, self.totals.T).T
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        rows: Array = (found / np.maximum(norms, 1e-30) if normalize else found).astype(np.float64)
        return rows
