"""The dense model that is carved: its matrices, and what texts put in front of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.supplies import supply_of
from mergekit_lite.engine.tiles import float32_of
from mergekit_lite.errors import DataError
from mergekit_lite.moe.carve._layer import Passed, Seen
from mergekit_lite.moe.carve.cost import graph_bytes, working_bytes
from mergekit_lite.moe.families import FAMILIES
from mergekit_lite.plan.types import Block, Job, Plan

if TYPE_CHECKING:
    from mergekit_lite.calibrate.estimate import Estimate
    from mergekit_lite.calibrate.host import Host
    from mergekit_lite.calibrate.run import Prepared
    from mergekit_lite.sources import Model

    Floats = NDArray[np.float32]

BASE = "base"


class Base:
    """Reads the base of a plan that carves it, and runs texts through it.

    Args:
        plan: of the carved model.
        models: its inputs, opened.
        host: on which texts are run.
        folder: where hidden states are kept while a loss is followed back; by default that of the
            system for what does not stay.
    """

    def __init__(
        self, plan: Plan, models: Mapping[str, Model], host: Host, folder: Path | None = None
    ) -> None:
        self._plan, self._base, self._host, self._folder = plan, models[BASE], host, folder
        self._readers = Readers(models, plan.row_maps)
        self._blocks = dict(_blocks(plan))

    def close(self) -> None:
        """Close the weight files."""
        self._readers.close()

    def matrix(self, layer: int, part: str) -> Floats:
        """Return `gate`, `up` or `down` of a layer in fp32, as the plan's rows read it."""
        block = self._blocks[layer, part]
        stored = block.order.stored if block.order is not None else block.stored
        job = Job(f"{part} of layer {layer}", "F32", stored, 0, 0, "merge", (block.read,))
        supply = supply_of(block.read, job, self._readers)
        if supply is None:
            raise DataError(f"the base has no {part} projection in layer {layer}")
        return float32_of(supply, 0, stored[0] * stored[1]).reshape(stored)

    def passed(self, file: Path, *, tokens: int, length: int, back: bool = False) -> Passed:
        """Run texts through the base and give what routers would be shown of them.

        With `back`, the last layer comes first, each with what its neurons matter to the loss.
        """
        import transformers

        from mergekit_lite.calibrate.run import Settings, model_digest, prepare
        from mergekit_lite.calibrate.texts import read_texts

        texts = [replace(text, domain="texts") for text in read_texts([file])]
        settings = Settings(length=length, max_tokens=tokens, device=self._host.device)
        prepared = prepare(self._base, texts, [], settings)
        taken = self._taken(prepared, length)
        prepared = replace(prepared, estimate=taken)
        self._host.accept(prepared, "running texts to carve the base by")
        facts: dict[str, Any] = {
            "base_sha256": model_digest(self._base),
            "texts_sha256": prepared.samples.digest,
            "tokens": prepared.samples.tokens,
            "transformers": transformers.__version__,
        }
        return Passed(self._back(prepared) if back else self._layers(prepared), facts)

    def _taken(self, prepared: Prepared, length: int) -> Estimate:
        """Return what it takes with one layer's inputs and matrices, and what is made of some."""
        carve = self._plan.moe["carve"]
        hidden, width = self._plan.moe["hidden"], self._plan.moe["carve"]["width"]
        matrices: int = 2 * 3 * 4 * hidden * width
        tokens, work = prepared.samples.tokens, prepared.estimate.work
        held = 4 * tokens * int(hidden) + matrices
        held += working_bytes(carve, tokens=tokens, hidden=int(hidden))
        rows = prepared.skeleton.vocabulary
        work = graph_bytes(carve, layer=work, length=length, vocabulary=rows)
        return replace(prepared.estimate, sums=held, work=work)

    def _back(self, prepared: Prepared) -> Iterator[tuple[int, Seen]]:
        from mergekit_lite.calibrate.importance import importances

        return importances(prepared, self._base, self._folder)

    def _layers(self, prepared: Prepared) -> Iterator[tuple[int, Seen]]:
        from mergekit_lite.calibrate.collect.inputs import InputCollector
        from mergekit_lite.calibrate.stream import Stream
        from mergekit_lite.calibrate.weights import Weights

        weights = Weights(prepared.skeleton, {BASE: self._base})
        inputs = InputCollector(prepared.samples.tokens)
        try:
            stream = Stream(prepared.skeleton, weights)
            hidden = stream.embed(prepared.batches)
            running = stream.layers(
                prepared.batches, hidden, watch=inputs.watch, before=inputs.before
            )
            for place in running:
                found = inputs.take()
                if not found:
                    raise DataError(f"`{place.name}` has no feed-forward layer that is known here")
                yield place.index, Seen(found["inputs"].numpy())
        finally:
            weights.close()


def _blocks(plan: Plan) -> Iterator[tuple[tuple[int, str], Block]]:
    """Yield how each matrix of each carved layer is read, as its first routed slice reads it."""
    family = FAMILIES[plan.moe["target"]]
    jobs = {job.name: job for job in plan.jobs}
    roots = {
        layer: name.removesuffix(".neurons")
        for name, _, kind, layer in plan.moe["rows"]
        if kind == "order"
    }
    for layer, root in roots.items():
        for part, name in family.experts.items():
            blocks = jobs[f"{root}.{name.format(e=0)}"].reads[0].blocks
            if part == "gate_up":
                yield (layer, "gate"), blocks[0]
                yield (layer, "up"), blocks[1]
            else:
                yield (layer, part), blocks[0]
