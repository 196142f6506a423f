"""Which experts of a routed model are chosen, with what weight, and how much they then say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.collect._sample import said_by
from mergekit_lite.calibrate.collect._types import domains_of, is_alone, run_alone
from mergekit_lite.calibrate.skeleton import Place, Skeleton
from mergekit_lite.calibrate.tokens import Batch, Samples
from mergekit_lite.calibrate.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor


def _norm_before(layer: Any) -> Any:
    """Return the norm that the residual stream enters on its way to the experts, if there is one.

    Where a norm follows the experts and none precedes them, they are shown the stream itself.
    """
    names = ("pre_feedforward_layernorm", "post_feedforward_layernorm", "post_attention_layernorm")
    before, after, usual = (getattr(layer, name, None) for name in names)
    return before if before is not None or after is not None else usual


def bias_of(router: Any) -> Any:
    """Return what a router adds to scores in the choice of experts alone, None for nothing."""
    for name, value in (*router.named_buffers(), *router.named_parameters()):
        if name.endswith("e_score_correction_bias"):
            return value
    return None


class RateCollector:
    """Sums over the choices of each router, through the modules of the family itself.

    Of N experts and D domains, named after the router (`model.layers.0.mlp.gate`): `.count` (D, N)
    tokens that chose the expert; `.weight` and `.weight_square` (N) sums of its weight; `.norm`,
    `.norm_square`, `.weighted_norm` (N) sums of the norm of its output, the last times its weight;
    `.norm_max` and `.peak` (N) the largest norm and entry; `.turned_norm` (N) as `.weighted_norm`,
    each token times 1 - cos, if positive, of the stream before and after the experts (where the
    stream is found); `.logit` (N) and `.logit_gram` (N, N) sums over all tokens; `.together` (N, N)
    tokens that chose both. All in fp64. Padding is left out. Dense layers have none.
    """

    kind = "rates"

    def __init__(self, samples: Samples, weights: Weights) -> None:
        self._domains = len(samples.domains)
        self._batch: Batch | None = None
        self._handles: list[Any] = []
        self._name = ""
        self._sums: dict[str, Tensor] = {}
        self._stream: Tensor | None = None

    def watch(self, place: Place) -> None:
        router, network = place.router(), place.feed_forward()
        if router is None or network is None:
            return
        self._name = router[0]
        self._handles = [
            router[1].register_forward_hook(self._choices),
            network[1].experts.register_forward_hook(self._outputs),
        ]
        if (norm := _norm_before(place.module)) is not None:
            self._handles.append(norm.register_forward_pre_hook(self._enters))

    def before(self, batch: Batch, hidden: Tensor) -> None:
        self._batch = batch

    def take(self) -> dict[str, Tensor]:
        for handle in self._handles:
            handle.remove()
        found = {f"{self._name}.{key}": value.cpu() for key, value in self._sums.items()}
        self._handles, self._sums, self._stream = [], {}, None
        return found

    @staticmethod
    def held(skeleton: Skeleton, samples: int, domains: int) -> int:
        """Return the bytes of the sums, which are small: an upper bound for 1024 experts."""
        return 16 * 1024 * 1024

    def _choices(self, module: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        import torch

        if self._batch is None:
            return
        keep = self._batch.mask.reshape(-1).to(output[0].device)
        logits, weights, chosen = (value.reshape(len(keep), -1)[keep] for value in output)
        experts = logits.shape[1]
        if not self._sums:
            self._begin(experts, logits.device)
        given = torch.zeros((len(logits), experts), dtype=torch.float64, device=logits.device)
        given.scatter_(1, chosen.long(), weights.double())
        picked = torch.zeros_like(given).scatter_(1, chosen.long(), 1.0)
        domains = torch.nn.functional.one_hot(domains_of(self._batch), self._domains)
        wide = logits.double()
        sums = self._sums
        sums["count"] += domains.to(given).T @ picked
        sums["weight"] += given.sum(0)
        sums["weight_square"] += given.square().sum(0)
        sums["logit"] += wide.sum(0)
        sums["logit_gram"] += wide.T @ wide
        sums["together"] += picked.T @ picked

    def _begin(self, experts: int, device: Any) -> None:
        import torch

        one = ["weight", "weight_square", "norm", "norm_square", "weighted_norm", "norm_max"]
        one += ["peak"] if self._stream is None else ["peak", "turned_norm"]
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys([*one, "logit"], (experts,))
        shapes |= {"count": (self._domains, experts)}
        shapes |= dict.fromkeys(("logit_gram", "together"), (experts, experts))
        self._sums = {
            key: torch.zeros(shape, dtype=torch.float64, device=device)
            for key, shape in shapes.items()
        }

    def _enters(self, module: Any, inputs: tuple[Any, ...]) -> None:
        """Note the residual stream that the experts add to."""
        self._stream = inputs[0]

    def _outputs(self, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Run each expert alone on the tokens that chose it, for the norm of what it says."""
        import torch

        if self._batch is None or is_alone(module):
            return
        keep = self._batch.mask.reshape(-1).to(inputs[0].device)
        hidden = inputs[0].reshape(len(keep), -1)[keep]
        chosen, weights = (value.reshape(len(keep), -1)[keep] for value in inputs[1:3])
        turned = self._turned(output, keep)
        with run_alone(module):
            for expert in range(self._sums["weight"].shape[0]):
                tokens, at = torch.where(chosen == expert)
                if not len(tokens):
                    continue
                said = said_by(module, expert, hidden[tokens], chosen).double()
                given = weights[tokens, at].double()
                self._add_norms(expert, said, given)
                if turned is not None:
                    loud = said.norm(dim=1) * given
                    self._sums["turned_norm"][expert] += (loud * turned[tokens]).sum()

    def _turned(self, output: Tensor, keep: Tensor) -> Tensor | None:
        """Return how far the experts turn the stream of each token: 1 - cos, or 0 below it."""
        import torch

        if self._stream is None:
            return None
        before = self._stream.reshape(len(keep), -1)[keep].double()
        after = before + output.reshape(len(keep), -1)[keep].double()
        return (1 - torch.nn.functional.cosine_similarity(before, after, dim=1)).clamp(min=0)

    def _add_norms(self, expert: int, said: Tensor, weights: Tensor) -> None:
        sums, norms = self._sums, said.norm(dim=1)
        sums["norm"][expert] += norms.sum()
        sums["norm_square"][expert] += norms.square().sum()
        sums["weighted_norm"][expert] += (norms * weights).sum()
        sums["norm_max"][expert] = max(float(sums["norm_max"][expert]), float(norms.max()))
        sums["peak"][expert] = max(float(sums["peak"][expert]), float(said.abs().max()))
