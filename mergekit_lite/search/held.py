"""A model in memory whose weights become those of one candidate after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.skeleton import Skeleton, build
from mergekit_lite.calibrate.stream import Stream
from mergekit_lite.calibrate.tokens import load_tokenizer
from mergekit_lite.calibrate.weights import Weights, forget
from mergekit_lite.engine.in_memory import InMemory
from mergekit_lite.engine.options import Options
from mergekit_lite.errors import RecipeError
from mergekit_lite.plan.questions import asked_by
from mergekit_lite.plan.stages import as_model
from mergekit_lite.plan.types import Job, Plan
from mergekit_lite.quality.forward import Loaded, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit_lite.sources import Model

DTYPES = ("dtype", "torch_dtype")
"""Entries of a config that say how weights are stored, which a forward pass does not ask."""


class Held(Weights):
    """The weights of a candidate, all of them in memory at a time.

    Args:
        skeleton: the model to bring them into.
        plan: of any candidate; all have the same rows.
        models: the inputs of the plans.
        options: how to merge.
    """

    def __init__(
        self, skeleton: Skeleton, plan: Plan, models: Mapping[str, Model], options: Options
    ) -> None:
        super().__init__(skeleton, {"candidate": as_model("candidate", plan, models, named=True)})
        self._rows = InMemory(models, options)
        self._target = {name: target for target, names in self.stored.items() for name in names}
        self._config = _built(plan)
        self._merged: dict[str, Job] = {}
        self.loaded = Loaded(skeleton, load_tokenizer(models["base"].root), Stream(skeleton, self))

    def merge(self, plan: Plan) -> int:
        """Make the model what a run of the plan would write; return the tensors that changed.

        Raises:
            DataError: the result holds NaN or infinity.
            RecipeError: the plan is of a model of another shape.
        """
        if _built(plan) != self._config:
            what = "candidates have models of different configs, and one is in memory"
            raise RecipeError(what, hint="search one kind of model at a time")
        self._rows.take(plan)
        jobs = {job.name: job for job in plan.jobs}
        changed = {name for name, job in jobs.items() if self._differs(job)}
        self._merged = {}  # should this fail, all weights count as unknown
        for layer, names in self.by_layer.items():
            self._put(layer, [name for name in names if name in changed])
        self._merged = jobs
        return len(changed)

    def touched(self) -> None:
        """Take note that somebody else has changed the weights: all are merged anew."""
        self._merged = {}

    def read(self, name: str) -> Tensor:
        """Return a tensor of the candidate in fp32."""
        import torch

        return torch.from_numpy(self._rows.tensor(name))

    def load(self, layer: int | None) -> None:
        """Do nothing: all layers are in memory."""

    def drop(self, layer: int) -> None:
        """Do nothing: the layer stays in memory."""

    def drop_vocabulary(self) -> None:
        """Do nothing: embedding and head stay in memory."""

    def close(self) -> None:
        """Close the weight files."""
        super().close()
        self._rows.close()

    def _differs(self, job: Job) -> bool:
        # What is asked of the whole model may differ where the row itself does not.
        return self._merged.get(job.name) != job or any(True for _ in asked_by(job))

    def _put(self, layer: int | None, names: list[str]) -> None:
        """Bring changed tensors into the model: in place where they are what it computes with."""
        import torch

        parameters: dict[str, Any] = dict(self.skeleton.model.named_parameters())
        targets = [self._target[name] for name in names]
        plain = [parameters[t] for t in targets if t in parameters and t not in self.converted]
        if len(plain) < len(names) or any(parameter.is_meta for parameter in plain):
            for _, module in self._modules(layer):
                forget(module)
            Weights.load(self, layer)
            return
        with torch.no_grad():
            for name, parameter in zip(names, plain, strict=True):
                parameter.copy_(self.read(name))


def held(plan: Plan, models: Mapping[str, Model], settings: Settings, options: Options) -> Held:
    """Return a model that candidates are merged into; no weight is read yet.

    Raises:
        RecipeError: transformers does not build the architecture.
        DataError: config and tokenizer do not fit each other.
    """
    config = _built(plan)
    folder = models["base"].root
    skeleton = build(folder, device=settings.device, dtype=settings.dtype, config=config)
    return Held(skeleton, plan, models, options)


def _built(plan: Plan) -> dict[str, Any]:
    """Return the entries of a plan's config that the model is built by."""
    return {key: value for key, value in plan.config.items() if key not in DTYPES}
