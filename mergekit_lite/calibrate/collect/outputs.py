"""What every expert of a routed layer would say of a sample of tokens, seen against the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.collect._sample import Spread, said_by
from mergekit_lite.calibrate.collect._types import is_alone, run_alone
from mergekit_lite.calibrate.collect.rates import bias_of
from mergekit_lite.calibrate.skeleton import Place, Skeleton
from mergekit_lite.calibrate.tokens import Batch, Samples
from mergekit_lite.calibrate.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

_ENTRIES = 2**20
_FEWEST, _MOST = 256, 4096


class OutputCollector:
    """Runs all experts on tokens spread evenly over the texts, and keeps how outputs relate.

    Of t tokens (4096 for 16 experts, fewer for more, 256 at least) and N experts, named after the
    router: `.logits` (t, N); `.given` (t, N) the weights that the model gives, 0 for experts that
    a token does not pass; `.products` (t, N, N) inner products of what experts say of one token;
    `.bias` (N) what counts in the choice alone. In fp32. Any subset's output is a weighted sum of
    what the experts say, so its distance to the whole follows from these.
    """

    kind = "outputs"

    def __init__(self, samples: Samples, weights: Weights) -> None:
        self._tokens = samples.tokens
        self._batch: Batch | None = None
        self._handles: list[Any] = []
        self._found: dict[str, list[Tensor]] = {}
        self._name = ""
        self._spread: Spread | None = None
        self._logits: Tensor | None = None
        self._bias: Tensor | None = None

    def watch(self, place: Place) -> None:
        router, network = place.router(), place.feed_forward()
        if router is None or network is None:
            return
        self._name, self._spread = router[0], None
        self._bias = bias_of(router[1])
        self._handles = [
            router[1].register_forward_hook(self._routes),
            network[1].experts.register_forward_pre_hook(self._says),
        ]

    def before(self, batch: Batch, hidden: Tensor) -> None:
        self._batch = batch

    def take(self) -> dict[str, Tensor]:
        import torch

        for handle in self._handles:
            handle.remove()
        found = {f"{self._name}.{key}": torch.cat(parts) for key, parts in self._found.items()}
        if found:
            experts = found[f"{self._name}.logits"].shape[1]
            bias = torch.zeros(experts) if self._bias is None else self._bias.detach().reshape(-1)
            found[f"{self._name}.bias"] = bias.float().cpu()
        self._handles, self._found, self._logits = [], {}, None
        return found

    @staticmethod
    def held(skeleton: Skeleton, samples: int, domains: int) -> int:
        """Return the bytes of the products of one layer: an upper bound for 512 experts."""
        return 4 * _FEWEST * 512 * 512

    def _routes(self, module: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        self._logits = output[0]

    def _says(self, module: Any, inputs: tuple[Any, ...]) -> None:
        import torch

        if self._batch is None or self._logits is None or is_alone(module):
            return
        keep = self._batch.mask.reshape(-1).to(inputs[0].device)
        logits = self._logits.reshape(len(keep), -1)[keep].float()
        experts = logits.shape[1]
        if self._spread is None:
            most = min(max(_ENTRIES // experts**2, _FEWEST), _MOST)
            self._spread = Spread(self._tokens, most)
        at = self._spread.places(int(keep.sum()))
        hidden, chosen, weights = (value.reshape(len(keep), -1)[keep][at] for value in inputs[:3])
        given = torch.zeros((len(at), experts), device=hidden.device)
        given.scatter_(1, chosen.long(), weights.float())
        with run_alone(module):
            said = torch.stack([said_by(module, e, hidden, chosen) for e in range(experts)], dim=1)
        products = said @ said.transpose(1, 2)
        parts = {"logits": logits[at], "given": given, "products": products}
        for key, value in parts.items():
            self._found.setdefault(key, []).append(value.cpu())
