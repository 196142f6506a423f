"""Whether a routed model's gates send texts where they belong, and what that is worth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.losses import sample_losses
from mergekit_lite.calibrate.routing import LayerRouting, RoutingSums
from mergekit_lite.calibrate.run import Prepared
from mergekit_lite.calibrate.skeleton import Place, Skeleton
from mergekit_lite.calibrate.stream import Stream
from mergekit_lite.calibrate.tokens import Batch
from mergekit_lite.calibrate.weights import Weights
from mergekit_lite.errors import DataError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

ROUTED = "routed"
GATELESS = "gateless"
EVERYONE = -1
_MANIFEST = "moe_manifest.json"


@dataclass(frozen=True)
class Loss:
    """How well a model predicts the texts of one domain.

    Attributes:
        bits_per_byte: mean bits it needs for a byte; lower is better.
        nats_per_token: mean loss of a token.
    """

    bits_per_byte: float
    nats_per_token: float


@dataclass(frozen=True)
class Probe:
    """What was found of a routed model.

    Attributes:
        experts: names of the routed experts, in order.
        domains: names of the domains of the texts.
        belongs: for each domain the experts that it belongs to, none for a domain of nobody.
        layers: what each router does.
        losses: way of routing -> domain -> loss: `routed` as the model is, `gateless` the mean of
            all experts, and each expert alone.
    """

    experts: tuple[str, ...]
    domains: tuple[str, ...]
    belongs: Mapping[str, tuple[int, ...]]
    layers: tuple[LayerRouting, ...]
    losses: Mapping[str, Mapping[str, Loss]]

    def right(self, layer: LayerRouting, *, texts: bool = False) -> float:
        """Return the part of tokens (or texts) that one layer sends to an expert of their domain.

        Domains count alike, however long their texts; domains of nobody are left out.
        """
        table = layer.told if texts else layer.chosen
        shares = [
            sum(table[number][expert] for expert in self.belongs[domain])
            for number, domain in enumerate(self.domains)
            if self.belongs[domain]
        ]
        return sum(shares) / len(shares)

    def right_in_all(self, *, texts: bool = False) -> float:
        """Return the mean of `right` over all routed layers."""
        return sum(self.right(layer, texts=texts) for layer in self.layers) / len(self.layers)


@dataclass(frozen=True)
class _Tried(Batch):
    """A batch that is run in one way of routing: None as the model is, or one expert, or all."""

    force: int | None = None


def belonging(
    domains: Sequence[str], experts: Sequence[str], chosen: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    """Return the experts that each domain belongs to: those of its name, or of the name chosen.

    Raises:
        RecipeError: no domain belongs to anybody, or a name is not known.
    """
    known = ", ".join(dict.fromkeys(experts))
    for domain, name in chosen.items():
        if domain not in domains or name not in experts:
            raise RecipeError(
                f"`{domain}={name}` names no domain of the data, or no expert",
                "--map",
                f"domains are {', '.join(domains)}; experts are {known}",
            )
    found = {
        domain: tuple(i for i, name in enumerate(experts) if name == chosen.get(domain, domain))
        for domain in domains
    }
    if not any(found.values()):
        raise RecipeError(
            f"no domain of the data ({', '.join(domains)}) is called like an expert ({known})",
            "--data",
            "write `--data EXPERT=FILE`, or say whose it is with `--map DOMAIN=EXPERT`",
        )
    return found


def expert_names(folder: Path, skeleton: Skeleton) -> tuple[str, ...]:
    """Return the names of a routed model's experts in order, numbers where nothing names them.

    Args:
        folder: of the model; `moe_manifest.json` in it says what it is made of.
        skeleton: the model, whose config says how many experts it has.
    """
    routers = [router for place in skeleton.layers if (router := place.router())]
    if not routers:
        return ()
    rows = next(weight for weight in routers[0][1].parameters() if weight.dim() == 2)
    return _named(folder / _MANIFEST) or tuple(map(str, range(rows.shape[0])))


def identical_layers(folder: Path) -> frozenset[int]:
    """Return the layers of a routed model all of whose experts are one."""
    file = folder / _MANIFEST
    if not file.is_file():
        return frozenset()
    try:
        return frozenset(json.loads(file.read_bytes()).get("identical", ()))
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"`{file}` does not say what the layers are: {error}") from error


def _named(file: Path) -> tuple[str, ...]:
    """Return the names in a manifest; nothing where it tells of experts that were there before."""
    if not file.is_file():
        return ()
    try:
        told = json.loads(file.read_bytes())
        names = [str(one["expert"]) for one in told.get("experts", ())]
        # Slices of one expert stand beside each other.
        return tuple(name for name in names for _ in range(told.get("split", 1)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"`{file}` does not say what the experts are: {error}",
            hint="name them with `--experts`",
        ) from error


def probe(
    prepared: Prepared,
    weights: Weights,
    experts: Sequence[str],
    belongs: Mapping[str, tuple[int, ...]],
    *,
    baselines: bool = True,
    without: Set[int] = frozenset(),
    tell: Callable[[str], object] = lambda text: None,
) -> Probe:
    """Run texts through a routed model, and through its experts without its routers.

    All ways of routing go through the model together, so each layer is read once.

    Args:
        prepared: the model and its texts.
        weights: of that model.
        experts: names of the routed experts, in order.
        belongs: for each domain the experts that it belongs to.
        without: layers whose routers decide nothing, as all their experts are one.
        baselines: also run the mean of all experts and each expert alone.
        tell: called with sentences on how far it is.
    """
    ways: dict[str, int | None] = {ROUTED: None}
    if baselines:
        ways |= {GATELESS: EVERYONE}
        ways |= {f"{name} alone": i for i, name in enumerate(experts)}
    stream = Stream(prepared.skeleton, weights)
    start = stream.embed(prepared.batches)
    batches = [_tried(b, force) for force in ways.values() for b in prepared.batches]
    hidden = [state for _ in ways for state in start]
    routers = _Routers(prepared, len(experts), without)
    for place in stream.layers(batches, hidden, watch=routers.watch, before=routers.before):
        routers.leave()
        tell(f"layer {place.index + 1} of {len(prepared.skeleton.layers)}")
    if not routers.found:
        raise RecipeError(
            "the model has no routers", hint="give a routed model, such as `run` of a `moe:` makes"
        )
    weights.load(None)
    count = len(prepared.batches)
    parts = [slice(i * count, (i + 1) * count) for i in range(len(ways))]
    losses = {
        name: _losses(stream, prepared, batches[part], hidden[part])
        for name, part in zip(ways, parts, strict=True)
    }
    return Probe(tuple(experts), prepared.samples.domains, belongs, tuple(routers.found), losses)


class _Routers:
    """Watches the routers of one layer after the other, and overrules them where that is asked."""

    def __init__(self, prepared: Prepared, experts: int, without: Set[int]) -> None:
        self._without = without
        self._domains = len(prepared.samples.domains)
        self._samples = len(prepared.samples.samples)
        self._experts = experts
        self.found: list[LayerRouting] = []
        self._sums: RoutingSums | None = None
        self._handle: Any = None
        self._batch: _Tried | None = None

    def watch(self, place: Place) -> None:
        router = place.router()
        if router is None or place.index in self._without:
            return
        self._sums = RoutingSums(place.index, *router, self._domains, self._samples)
        self._handle = router[1].register_forward_hook(self._seen)

    def before(self, batch: Batch, hidden: Tensor) -> None:
        self._batch = batch if isinstance(batch, _Tried) else None

    def leave(self) -> None:
        if self._sums is not None:
            self._handle.remove()
            self.found.append(self._sums.done())
            self._sums = None

    def _seen(self, module: Any, inputs: Any, output: tuple[Tensor, ...]) -> Any:
        if self._batch is None or self._sums is None:
            return None
        force = self._batch.force
        if force is None:
            self._sums.add(self._batch, output)
            return None
        logits, weights, chosen = output
        if force == EVERYONE:
            experts = logits.shape[-1]
            numbers = chosen.new_tensor(range(experts)).expand(len(chosen), experts)
            return logits, weights.new_full((len(weights), experts), 1 / experts), numbers
        return logits, weights.new_ones((len(weights), 1)), chosen.new_full((len(chosen), 1), force)


def _tried(batch: Batch, force: int | None) -> _Tried:
    return _Tried(**{f.name: getattr(batch, f.name) for f in fields(Batch)}, force=force)


def _losses(
    stream: Stream, prepared: Prepared, batches: Sequence[Batch], hidden: Sequence[Tensor]
) -> dict[str, Loss]:
    """Return the loss of each domain, over all tokens but the first of each text."""
    samples = prepared.samples
    nats, tokens, size = (dict.fromkeys(samples.domains, 0.0) for _ in range(3))
    for loss in sample_losses(stream, batches, hidden):
        sample = samples.samples[loss.row]
        name = samples.domains[sample.domain]
        nats[name] += loss.nats
        tokens[name] += loss.tokens
        size[name] += sample.nbytes
    return {
        name: Loss(nats[name] / math.log(2) / max(size[name], 1), nats[name] / max(tokens[name], 1))
        for name in samples.domains
    }
