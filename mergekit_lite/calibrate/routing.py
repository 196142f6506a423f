"""Where the routers of a model send the tokens of each domain, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.collect._types import domains_of
from mergekit_lite.calibrate.tokens import Batch

if TYPE_CHECKING:
    from torch import Tensor

TIE = 1e-3
"""Logits nearer than this may change places when they are rounded to bf16."""


@dataclass(frozen=True)
class LayerRouting:
    """What one router does.

    Attributes:
        layer: index of the layer.
        router: name of the router.
        chosen: for each domain, the part of its tokens that each expert is the first choice of.
        told: for each domain, the part of its texts that each expert is the first choice of, by
            the mean log probability over a text's tokens.
        entropy: mean over tokens of the entropy of the router's probabilities, in nats.
        load: part of all choices, of first and further rank, that falls on each expert.
        ties: part of the tokens whose last chosen and first unchosen expert are so near that
            rounding may exchange them.
        condition: condition number of the router's matrix.
    """

    layer: int
    router: str
    chosen: tuple[tuple[float, ...], ...]
    told: tuple[tuple[float, ...], ...]
    entropy: float
    load: tuple[float, ...]
    ties: float
    condition: float


class RoutingSums:
    """Adds up the choices of one router over batches.

    Args:
        layer: index of the layer.
        name: of the router.
        router: its module.
        domains: number of domains.
        samples: number of texts.
    """

    def __init__(self, layer: int, name: str, router: Any, domains: int, samples: int) -> None:
        import torch

        self.layer, self.name, self._router, self._domains = layer, name, router, domains
        weight = next(w for w in router.parameters() if w.dim() == 2)
        self._experts = weight.shape[0]
        self._matrix = weight
        # Sigmoid routers choose by scores that a bias corrects.
        self._is_sigmoid = any("score" in key for key, _ in router.named_buffers()) or any(
            "score" in key for key, _ in router.named_parameters()
        )
        shape = (domains, self._experts)
        self._chosen, self._load = torch.zeros(shape), torch.zeros(self._experts)
        self._entropy, self._ties, self._tokens = 0.0, 0, 0
        self._logs = torch.zeros((samples, self._experts), dtype=torch.float64)
        self._of_sample = torch.zeros(samples, dtype=torch.int64)

    def add(self, batch: Batch, output: tuple[Tensor, ...]) -> None:
        """Add what a router returned for a batch: logits, weights and choices of each token."""
        import torch
        from torch.nn.functional import one_hot

        keep = batch.mask.reshape(-1)
        logits, weights, chosen = (
            v.reshape(len(keep), -1)[keep.to(v.device)].cpu() for v in output
        )
        domains = domains_of(batch)
        first = chosen.gather(1, weights.argmax(1, keepdim=True)).squeeze(1)
        self._chosen += (
            one_hot(domains, self._domains).float().T @ one_hot(first, self._experts).float()
        )
        self._load += one_hot(chosen, self._experts).sum((0, 1))
        logs = self._log_probabilities(logits.double())
        self._entropy += float(-(logs.exp() * logs).sum())
        ranked = logits.double().sort(1, descending=True).values
        rank = chosen.shape[1]
        if rank < self._experts:
            self._ties += int(((ranked[:, rank - 1] - ranked[:, rank]) < TIE).sum())
        self._tokens += len(logits)
        rows = torch.tensor(batch.rows)[:, None].expand(batch.mask.shape)[batch.mask]
        self._logs.index_add_(0, rows, logs)
        self._of_sample[list(batch.rows)] = batch.domains

    def done(self) -> LayerRouting:
        """Return what the router does."""
        import torch
        from torch.nn.functional import one_hot

        told = (
            one_hot(self._of_sample, self._domains).double().T
            @ one_hot(self._logs.argmax(1), self._experts).double()
        )
        return LayerRouting(
            self.layer,
            self.name,
            _shares(self._chosen),
            _shares(told),
            self._entropy / self._tokens,
            tuple((self._load / self._load.sum()).tolist()),
            self._ties / self._tokens,
            float(torch.linalg.cond(self._matrix.detach().double().cpu())),
        )

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        import torch

        if self._is_sigmoid:
            logits = torch.nn.functional.logsigmoid(logits)
        return logits.log_softmax(1)


def _shares(counts: Tensor) -> tuple[tuple[float, ...], ...]:
    rows = (counts.double() / counts.double().sum(1, keepdim=True).clamp(min=1)).tolist()
    return tuple(map(tuple, rows))
