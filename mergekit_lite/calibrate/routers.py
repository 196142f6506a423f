"""Fits the routers of a merged routed model, layer after layer, on the model as it comes to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit_lite.calibrate.collect.inputs import InputCollector
from mergekit_lite.calibrate.collect.rates import bias_of
from mergekit_lite.calibrate.host import Host
from mergekit_lite.calibrate.run import Prepared, Settings, prepare
from mergekit_lite.calibrate.stream import Stream
from mergekit_lite.calibrate.texts import read_texts
from mergekit_lite.calibrate.tokens import Samples, batches
from mergekit_lite.calibrate.weights import Weights
from mergekit_lite.errors import DataError, Problem
from mergekit_lite.moe.refit.cost import held_bytes
from mergekit_lite.moe.refit.solve import Domain, harc, regmean, start_of
from mergekit_lite.plan.stages import as_model
from mergekit_lite.plan.types import Plan

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from mergekit_lite.calibrate.skeleton import Place
    from mergekit_lite.sources import Model

BASE, RESULT = "base", "result"
_DTYPES = {"BF16": "bfloat16", "F16": "float16"}
_BLOCK = 4096
_HELD_OUT = 5
"""Each so many-th sample of a domain is not fitted to."""


@dataclass(frozen=True)
class Fit:
    """What became of one router.

    Attributes:
        layer: it belongs to.
        name: of the tensor in the result.
        rows: of the router.
        overlap: expert -> the part of the choices of its own router that this one shares, on
            samples that were left out of the fit.
        others: the same, as a mean over all experts, of routers that are not fitted: the `base`'s,
            and the `mean` of all.
        steps: that the fit took.
    """

    layer: int
    name: str
    rows: NDArray[np.float32]
    overlap: Mapping[str, float]
    others: Mapping[str, float]
    steps: int

    @property
    def kept(self) -> float:
        """Mean of the overlap over all experts."""
        return sum(self.overlap.values()) / len(self.overlap)


class RouterFitter:
    """Fits the routers that a plan asks for.

    Texts run through the merged model, whose layers are computed as they are needed; what a layer
    is shown comes out of layers whose routers are fitted already.

    Args:
        plan: of a merge with fitted routers.
        models: its inputs, opened.
        host: on which texts are run.
    """

    def __init__(self, plan: Plan, models: Mapping[str, Model], host: Host) -> None:
        self._plan, self._asked, self._host = plan, plan.moe["routers"], host
        self._models = {RESULT: as_model(RESULT, plan, dict(models), named=True), **models}
        self._experts: list[str] = list(self._asked["data"])
        self._dtypes = {job.name: job.dtype for job in plan.jobs}

    def fits(self) -> list[Fit]:
        """Return every router.

        Raises:
            DataError: texts are missing or unfit, or a router keeps too little of the choices.
            ResourceError: it would take more memory than is allowed.
        """
        prepared = self._prepared()
        made = self._asked["rows"]

        def place(name: str) -> tuple[str, str]:
            # The base's routers stand in until they are fitted; nothing depends on them.
            return (BASE if name in made else RESULT), name

        weights = Weights(prepared.skeleton, self._models, place)
        try:
            found = list(self._layers(prepared, weights))
        finally:
            weights.close()
        self._require(found)
        return found

    def _prepared(self) -> Prepared:
        folder = Path(self._plan.folder)
        texts = [
            replace(text, domain=expert)
            for expert, file in self._asked["data"].items()
            for text in read_texts([folder / file])
        ]
        settings = Settings(self._asked["length"], self._asked["tokens"], device=self._host.device)
        prepared = prepare(self._models[BASE], texts, [], settings)
        samples = _with_held_out(prepared.samples, self._experts)
        width, tokens = prepared.skeleton.width, samples.tokens
        names = self._asked["rows"]
        experts = max(job.shape[0] for job in self._plan.jobs if job.name in names)
        held = held_bytes(tokens, width, experts)
        prepared = replace(
            prepared,
            samples=samples,
            batches=tuple(batches(samples, size=settings.batch)),
            estimate=replace(prepared.estimate, sums=held),
        )
        self._host.accept(prepared, "running texts to fit routers")
        return prepared

    def _layers(self, prepared: Prepared, weights: Weights) -> Iterator[Fit]:
        stream, shown = Stream(prepared.skeleton, weights), InputCollector(prepared.samples.tokens)
        states = stream.embed(prepared.batches)
        entering = list(states)
        running = stream.layers(prepared.batches, states, watch=shown.watch, before=shown.before)
        for place in running:
            found = shown.take()
            fit = self._fit(place, weights, found["inputs"], found["domains"]) if found else None
            if fit is not None:
                yield fit
                states[:] = entering
                stream.run(place, prepared.batches, states)
            entering = list(states)

    def _fit(self, place: Place, weights: Weights, inputs: Tensor, domains: Tensor) -> Fit | None:
        """Fit a layer's router, and leave it in the model; None where it has none to fit."""
        import torch

        router = place.router()
        if router is None:
            return None
        key, matrix = next((n, w) for n, w in router[1].named_parameters() if w.dim() == 2)
        names = weights.stored.get(f"{router[0]}.{key}", [])
        if len(names) != 1 or names[0] not in self._asked["rows"]:
            return None
        bias = bias_of(router[1])
        rows = {expert: self._read(weights, expert, names[0]) for expert in self._experts}
        parts = {
            expert: Domain(inputs[domains == index].numpy(), rows[expert].double().numpy())
            for index, expert in enumerate(self._experts)
        }
        solved, steps = self._solved(list(parts.values()), sigmoid=bias is not None)
        dtype = getattr(torch, _DTYPES.get(self._dtypes[names[0]], "float32"))
        final = torch.from_numpy(solved).to(dtype).float()
        ways = {"": final, "mean": torch.from_numpy(start_of(list(parts.values()))).float()}
        ways |= {"base": self._read(weights, BASE, names[0])}
        own = bias.detach().clone() if bias is not None else None
        overlap: dict[str, dict[str, float]] = {way: {} for way in ways}
        for index, expert in enumerate(self._experts):
            held = inputs[domains == index + len(self._experts)]
            held = held if len(held) else inputs[domains == index]
            wanted = self._bias(weights, expert, f"{router[0]}.", own)
            chosen = _choices(router[1], matrix, rows[expert], bias, wanted, held)
            for way, matrix_of in ways.items():
                other = _choices(router[1], matrix, matrix_of, bias, own, held)
                overlap[way][expert] = _shared(chosen, other)
        _put(matrix, final)
        _put(bias, own)
        others = {way: sum(of.values()) / len(of) for way, of in overlap.items() if way}
        fit = Fit(place.index, names[0], final.numpy(), overlap[""], others, steps)
        self._host.say(
            f"layer {place.index}: {100 * fit.kept:.1f} % of the experts' choices are kept"
            f" (mean of the routers {100 * others['mean']:.1f} %, the base's"
            f" {100 * others['base']:.1f} %)"
        )
        return fit

    def _solved(
        self, domains: Sequence[Domain], *, sigmoid: bool
    ) -> tuple[NDArray[np.float64], int]:
        shrink = self._asked["shrink"]
        if self._asked["method"] == "regmean":
            return regmean(domains, shrink=shrink), 1
        steps = self._asked["iterations"]
        return harc(domains, shrink=shrink, iterations=steps, sigmoid=sigmoid)

    def _read(self, weights: Weights, source: str, name: str) -> Tensor:
        stored = name if source == BASE else self._asked["stored"][name][source]
        return weights.read_from(source, stored or name)

    def _bias(self, weights: Weights, expert: str, start: str, own: Tensor | None) -> Tensor | None:
        """Return what an expert's router adds in its choice."""
        for key, names in weights.stored.items():
            if key.startswith(start) and key.endswith("e_score_correction_bias"):
                return self._read(weights, expert, names[0]).reshape_as(own)  # type: ignore[arg-type]
        return own

    def _require(self, found: Sequence[Fit]) -> None:
        least = self._asked["least_overlap"]
        problems = [
            Problem(
                f"the router of layer {fit.layer} keeps {100 * fit.kept:.0f} % of what the experts'"
                f" routers choose, and at least {100 * least:.0f} % are wanted",
                fit.name,
                "give more texts (`tokens`), merge models that are nearer to each other, or take it"
                " all the same with `routers: {least_overlap: 0}`",
            )
            for fit in found
            if fit.kept < least
        ]
        if problems:
            raise DataError(problems)


def _with_held_out(samples: Samples, experts: Sequence[str]) -> Samples:
    """Return samples of which some are of domains of their own, which nothing is fitted to."""
    seen = dict.fromkeys(range(len(experts)), 0)
    place = {index: experts.index(name) for index, name in enumerate(samples.domains)}
    changed = []
    for sample in samples.samples:
        domain = place[sample.domain]
        seen[domain] += 1
        held = seen[domain] % _HELD_OUT == 0
        changed.append(replace(sample, domain=domain + held * len(experts)))
    names = (*experts, *(f"{name}, held out" for name in experts))
    return replace(samples, samples=tuple(changed), domains=names)


def _choices(
    router: Any, matrix: Any, rows: Tensor, bias: Any, wanted: Tensor | None, inputs: Tensor
) -> Tensor:
    """Return which experts a router with these rows chooses, by the module of its family."""
    import torch

    _put(matrix, rows)
    _put(bias, wanted)
    with torch.inference_mode():
        found = [
            router(part.to(matrix.device, matrix.dtype))[2].reshape(len(part), -1).cpu()
            for part in torch.split(inputs, _BLOCK)
        ]
    return torch.cat(found)


def _put(place: Any, value: Tensor | None) -> None:
    if place is not None and value is not None:
        place.data.copy_(value)


def _shared(one: Tensor, other: Tensor) -> float:
    """Return which part of the choices of one are also those of the other."""
    return float((one[:, :, None] == other[:, None, :]).any(2).double().mean())
