"""What experts of a routed layer say on average, and of single tokens: what merging them reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.collect._sample import Spread, said_by
from mergekit_lite.calibrate.collect._types import is_alone, run_alone
from mergekit_lite.calibrate.skeleton import Place, Skeleton
from mergekit_lite.calibrate.tokens import Batch, Samples
from mergekit_lite.calibrate.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

SAMPLED = 4096
"""Tokens on which all experts are run."""
_ENTRIES = 2**25
_FEWEST, _MOST = 16, 256
_AT_ONCE = 2**25


class MergingCollector:
    """Runs all experts on up to 4096 tokens spread evenly over the texts.

    Of t tokens, N experts with I neurons and a stream of d, named after the router: `.said` (N, d)
    the mean of what each expert says of all tokens, `.gated` (N, d) the same times the weight that
    the model gives it; `.cosines` (N, N) the mean over tokens of the cosine of what two say; all in
    fp64. `.inputs` (t, d) and `.given` (t, N), the weights, 0 for experts that a token does not
    pass; `.activations` (N, s, I) what neurons say of 16 to 256 tokens, where it is known how
    experts are made; in fp32.
    """

    kind = "merging"

    def __init__(self, samples: Samples, weights: Weights) -> None:
        self._tokens = samples.tokens
        self._batch: Batch | None = None
        self._handle: Any = None
        self._name, self._experts = "", 0
        self._parts: dict[str, list[Tensor]] = {}
        self._sums: dict[str, Tensor] = {}

    def watch(self, place: Place) -> None:
        router, network = place.router(), place.feed_forward()
        if router is None or network is None:
            return
        self._name = router[0]
        rows = next((w.shape[0] for w in router[1].parameters() if w.dim() == 2), 0)
        self._experts = rows
        self._spread = Spread(self._tokens, SAMPLED)
        neurons = _neurons(network[1].experts)
        few = min(max(_ENTRIES // max(rows * neurons, 1), _FEWEST), _MOST)
        self._few = Spread(min(self._tokens, SAMPLED), few) if neurons else None
        self._handle = network[1].experts.register_forward_pre_hook(self._says)

    def before(self, batch: Batch, hidden: Tensor) -> None:
        self._batch = batch

    def take(self) -> dict[str, Tensor]:
        import torch

        if self._handle is None:
            return {}
        self._handle.remove()
        self._handle = None
        found = {}
        for key, parts in self._parts.items():
            found[key] = torch.cat(parts, 1 if key == "activations" else 0)
        tokens = len(found["inputs"]) if "inputs" in found else 1
        found |= {key: (value / tokens).cpu() for key, value in self._sums.items()}
        self._parts, self._sums = {}, {}
        return {f"{self._name}.{key}": value for key, value in found.items()}

    @staticmethod
    def held(skeleton: Skeleton, samples: int, domains: int) -> int:
        """Return the bytes of one layer: inputs, activations, and outputs of some tokens."""
        inputs = 2 * 4 * SAMPLED * (skeleton.width + 512)
        return inputs + 2 * 4 * _ENTRIES + 4 * 4 * _AT_ONCE + 16 * 512 * (skeleton.width + 512)

    def _says(self, module: Any, inputs: tuple[Any, ...]) -> None:
        import torch

        if self._batch is None or is_alone(module):
            return
        keep = self._batch.mask.reshape(-1).to(inputs[0].device)
        at = self._spread.places(int(keep.sum())).to(inputs[0].device)
        hidden, chosen, weights = (value.reshape(len(keep), -1)[keep][at] for value in inputs[:3])
        if not len(hidden):
            return
        given = torch.zeros((len(hidden), self._experts), device=hidden.device)
        given.scatter_(1, chosen.long(), weights.float())
        self._add("inputs", hidden.float())
        self._add("given", given)
        if self._few is not None:
            some = hidden[self._few.places(len(hidden)).to(hidden.device)]
            if len(some):
                self._add("activations", _activations(module, some))
        step = max(_AT_ONCE // max(self._experts * hidden.shape[1], 1), 1)
        with run_alone(module):
            for first in range(0, len(hidden), step):
                part = slice(first, first + step)
                said = [
                    said_by(module, expert, hidden[part], chosen) for expert in range(self._experts)
                ]
                self._sum(torch.stack(said, 1), given[part])

    def _add(self, key: str, value: Tensor) -> None:
        self._parts.setdefault(key, []).append(value.cpu())

    def _sum(self, said: Tensor, given: Tensor) -> None:
        """Add what all experts say of tokens, (tokens, N, d)."""
        import torch

        unit = torch.nn.functional.normalize(said, dim=2)
        sums = {
            "said": said.sum(0, dtype=torch.float64),
            "gated": (said * given[:, :, None]).sum(0, dtype=torch.float64),
            "cosines": (unit @ unit.transpose(1, 2)).sum(0, dtype=torch.float64),
        }
        for key, value in sums.items():
            self._sums[key] = value if key not in self._sums else self._sums[key] + value


def _neurons(module: Any) -> int:
    """Return how many neurons an expert has; 0 where it is not known how it is made."""
    gate_up, down = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    if gate_up is None or down is None or gate_up.dim() != 3 or down.dim() != 3:
        return 0
    if not hasattr(module, "act_fn") or hasattr(module, "gate_up_proj_bias"):
        return 0
    experts, wide, hidden = gate_up.shape
    return wide // 2 if down.shape == (experts, hidden, wide // 2) else 0


def _activations(module: Any, hidden: Tensor) -> Tensor:
    """Return what goes into the down projection of each expert, (N, tokens, neurons)."""
    import torch

    found = []
    for matrix in module.gate_up_proj:
        gate, up = torch.nn.functional.linear(hidden, matrix).chunk(2, dim=-1)
        found.append((module.act_fn(gate) * up).float())
    return torch.stack(found)
