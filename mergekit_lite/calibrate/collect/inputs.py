"""What each feed-forward layer is shown, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.collect._types import domains_of, tokens_of
from mergekit_lite.calibrate.skeleton import Place, Skeleton
from mergekit_lite.calibrate.tokens import Batch

if TYPE_CHECKING:
    from torch import Tensor


class InputCollector:
    """Keeps the inputs of one feed-forward layer, of all tokens or of some spread evenly over them.

    `inputs` (t, d) in fp32; `domains` (t) the domain of each. Padding is left out. It is no kind of
    statistic that `calibrate` writes: all tokens of all layers are too much for a disk.

    Args:
        tokens: how many tokens the texts have.
        most: how many of them to keep; None keeps all.
    """

    kind = "inputs"

    def __init__(self, tokens: int, most: int | None = None) -> None:
        self._stride = 1 if most is None else max(1, -(-tokens // most))
        self._batch: Batch | None = None
        self._handle: Any = None
        self._found: dict[str, list[Tensor]] = {}
        self._seen = 0

    def watch(self, place: Place) -> None:
        network = place.feed_forward()
        self._found, self._seen = {"inputs": [], "domains": []}, 0
        if network is not None:
            self._handle = network[1].register_forward_pre_hook(self._add)

    def before(self, batch: Batch, hidden: Tensor) -> None:
        self._batch = batch

    def take(self) -> dict[str, Tensor]:
        import torch

        if self._handle is None:
            return {}
        self._handle.remove()
        found = {key: torch.cat(parts) for key, parts in self._found.items()}
        self._handle, self._found = None, {}
        return found

    @staticmethod
    def held(skeleton: Skeleton, samples: int, domains: int) -> int:
        """Return nothing: who keeps inputs knows of how many tokens."""
        return 0

    def _add(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        if self._batch is None:
            return
        rows = tokens_of(inputs[0], self._batch.mask)
        domains = domains_of(self._batch)
        first = -self._seen % self._stride
        self._seen += len(rows)
        self._found["inputs"].append(rows[first :: self._stride].float().cpu())
        self._found["domains"].append(domains[first :: self._stride].cpu())
