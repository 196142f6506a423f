"""Brings the stored weights of one layer at a time into a model, and takes them out again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.skeleton import Skeleton
from mergekit_lite.checkpoint import FLOAT_DTYPES
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.supplies import supply_of
from mergekit_lite.engine.tiles import float32_of
from mergekit_lite.errors import DataError
from mergekit_lite.plan.types import Job, Read

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit_lite.sources import Model


class Weights:
    """The stored weights of a model, by the layer that they belong to.

    Names and layouts on disk become those of transformers by its own rules.

    Attributes:
        by_layer: stored names of each layer; None stands for all outside the layers.
        stored: stored names of each weight of transformers.
        converted: weights of transformers that are no single stored tensor as it is.

    Args:
        skeleton: the model to bring them into.
        models: where they are stored, by any name.
        place: of a tensor of the first model, the model that it is read from instead and its
            name there; by default itself.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        models: Mapping[str, Model],
        place: Callable[[str], tuple[str, str]] | None = None,
    ) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.skeleton = skeleton
        self.models = models
        first = next(iter(models))
        self._place_of = place or (lambda name: (first, name))
        self._rules = get_model_conversion_mapping(skeleton.model)
        self._readers = Readers(models)
        self.by_layer = self._group(models[first])

    def close(self) -> None:
        """Close the weight files."""
        self._readers.close()

    def load(self, layer: int | None) -> None:
        """Bring the weights of a layer into memory; None stands for all outside the layers.

        Raises:
            DataError: weights of the layer are not stored, or do not fit.
        """
        state = {name: self.read(name) for name in self.by_layer.get(layer, ())}
        self._place(state)
        self._make_buffers(layer)
        self._require_complete(layer)

    def drop(self, layer: int) -> None:
        """Take the weights of a layer out of memory."""
        for _, module in self._modules(layer):
            forget(module)

    def drop_vocabulary(self) -> None:
        """Take embedding and head out of memory; what else is outside the layers is small."""
        model = self.skeleton.model
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            if module is not None:
                forget(module)

    def _group(self, model: Model) -> dict[int | None, list[str]]:
        """Return the stored names of each layer, by where transformers puts them."""
        from transformers import core_model_loading as loading

        renamings = [r for r in self._rules if isinstance(r, loading.WeightRenaming)]
        converters = [r for r in self._rules if isinstance(r, loading.WeightConverter)]
        whole = self.skeleton.model
        known, prefix = whole.state_dict(), whole.base_model_prefix
        self.stored: dict[str, list[str]] = {}
        self.converted: set[str] = set()
        stem = self.skeleton.layers[0].name.rpartition(".")[0]
        layered = re.compile(rf"{re.escape(stem)}\.(\d+)\.")
        found: dict[int | None, list[str]] = {}
        for name, info in model.header.tensors.items():
            target, how = loading.rename_source_key(name, renamings, converters, prefix, known)
            if target not in known or info.loaded not in FLOAT_DTYPES:
                continue
            if how is not None:
                self.converted.add(target)
            self.stored.setdefault(target, []).append(name)
            match = layered.match(target)
            found.setdefault(int(match[1]) if match else None, []).append(name)
        return found

    def read(self, name: str) -> Tensor:
        """Return a stored tensor in fp32.

        Raises:
            DataError: it is not there.
        """
        return self.read_from(*self._place_of(name))

    def read_from(self, source: str, name: str) -> Tensor:
        """Return a tensor of one of the models in fp32, by the name that it has there.

        Raises:
            DataError: it is not there.
        """
        import torch

        info = self.models[source].header.tensors.get(name)
        if info is None:
            raise DataError(f"`{name}` is not in `{self.models[source].reference}`")
        job = Job(name, info.dtype, info.shape, 0, 0, "copy", ())
        supply = supply_of(Read(source, name, nbytes=info.nbytes), job, self._readers)
        if supply is None:
            raise DataError(f"`{name}` cannot be read", where=source)
        return torch.from_numpy(float32_of(supply, 0, info.size).reshape(info.shape))

    def _place(self, state: Mapping[str, Tensor]) -> None:
        """Hand weights to transformers, which knows what its modules make of them."""
        from transformers import core_model_loading as loading
        from transformers.modeling_utils import LoadStateDictConfig
        from transformers.utils import logging

        if not state:
            return
        settings = LoadStateDictConfig(
            dtype=self.skeleton.dtype,
            device_map={"": self.skeleton.device},
            weight_mapping=self._rules,
        )
        logging.disable_progress_bar()
        found, _ = loading.convert_and_load_state_dict_in_model(
            self.skeleton.model, dict(state), settings
        )
        wrong = [*found.mismatched_keys, *found.conversion_errors, *found.error_msgs]
        if wrong:
            raise DataError(
                f"a stored weight does not fit the config: {wrong[0]}",
                next(iter(self.models.values())).reference,
                "config.json and the weights are of different models",
            )

    def _make_buffers(self, layer: int | None) -> None:
        """Make what follows from the config and is stored nowhere, such as rotary frequencies."""
        import torch

        model = self.skeleton.model
        for _, module in self._modules(layer):
            lost = [
                key
                for key in module._non_persistent_buffers_set
                if (value := module._buffers.get(key)) is not None and value.is_meta
            ]
            for key in lost:
                empty = torch.empty_like(module._buffers[key], device=self.skeleton.device)
                module._buffers[key] = empty
            if lost:
                with torch.no_grad():
                    model._init_weights(module)

    def _require_complete(self, layer: int | None) -> None:
        if layer is None:
            self._tie()
        lacking = [
            f"{name}.{key}"
            for name, module in self._modules(layer)
            for key, weight in [*module._parameters.items(), *module._buffers.items()]
            if weight is not None and weight.is_meta
        ]
        if lacking:
            raise DataError(
                f"the checkpoint lacks {len(lacking)} weights that its config asks for, such as"
                f" `{lacking[0]}`",
                next(iter(self.models.values())).reference,
                "config.json and the weights are of different models",
            )

    def _tie(self) -> None:
        model = self.skeleton.model
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if head is not None and head.weight.is_meta and model.config.tie_word_embeddings:
            head.weight = embedding.weight

    def _modules(self, layer: int | None) -> Sequence[tuple[str, Any]]:
        if layer is not None:
            place = self.skeleton.layers[layer]
            return [(f"{place.name}.{n}", m) for n, m in place.module.named_modules()]
        inside = {id(m) for place in self.skeleton.layers for m in place.module.modules()}
        return [(n, m) for n, m in self.skeleton.model.named_modules() if id(m) not in inside]


def forget(module: Any) -> None:
    """Take a module's own weights out of memory; those of modules inside it stay."""
    for key, weight in list(module._parameters.items()):
        if weight is not None and not weight.is_meta:
            setattr(module, key, type(weight)(weight.to("meta"), requires_grad=False))
