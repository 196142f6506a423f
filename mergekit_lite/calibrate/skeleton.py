"""A model of transformers without its weights, and what stands where in it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.heads import Head, from_config, head_of
from mergekit_lite.errors import DataError, RecipeError, SourceError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Place:
    """One layer of the decoder, or of an encoder.

    Attributes:
        index: 0 for the first.
        name: as tensors of the layer begin, such as `model.layers.0`.
        module: the layer.
    """

    index: int
    name: str
    module: Any

    def linears(self) -> Iterator[tuple[str, nn.Linear]]:
        """Yield every linear layer with its full name."""
        from torch import nn

        for name, module in self.module.named_modules():
            if isinstance(module, nn.Linear):
                yield f"{self.name}.{name}", module

    def feed_forward(self) -> tuple[str, Any] | None:
        """Return the feed-forward network, routed or not, by the names that families use."""
        for name in ("mlp", "block_sparse_moe", "feed_forward", "moe"):
            if (module := getattr(self.module, name, None)) is not None:
                return f"{self.name}.{name}", module
        return None

    def router(self) -> tuple[str, Any] | None:
        """Return the router, where the layer is routed: what gives logits, weights, choices."""
        network = self.feed_forward()
        if network is None or not hasattr(network[1], "experts"):
            return None
        for name in ("gate", "router"):
            if (module := getattr(network[1], name, None)) is not None:
                return f"{network[0]}.{name}", module
        return None


@dataclass(frozen=True)
class Skeleton:
    """A model whose weights are not in memory.

    Attributes:
        model: on the meta device.
        layers: its decoder layers, or those of an encoder, in order.
        device: where weights are brought.
        dtype: that they are computed in.
        head: what it has on top of its layers.
    """

    model: Any
    layers: tuple[Place, ...]
    device: torch.device
    dtype: torch.dtype
    head: Head = "language"

    @property
    def width(self) -> int:
        """Entries of a hidden state."""
        width: int = self.model.config.get_text_config().hidden_size
        return width

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        rows: int = self.model.get_input_embeddings().weight.shape[0]
        return rows

    def parameters(self, layer: int) -> int:
        """Return the number of weights of one layer."""
        return sum(weight.numel() for weight in self.layers[layer].module.parameters())

    def parameters_outside(self) -> int:
        """Return the number of weights that are in no layer."""
        total = sum(weight.numel() for weight in self.model.parameters())
        return int(total) - sum(self.parameters(place.index) for place in self.layers)


def require_transformers(what: str) -> None:
    """Check that transformers is installed.

    Args:
        what: the command that needs it.

    Raises:
        SourceError: it is not; tells how to install it.
    """
    if importlib.util.find_spec("transformers") is None:
        raise SourceError(
            "running a model needs the package transformers",
            what,
            'install it with `pip install "mergekit-lite[calibrate]"`',
        )


def build(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    config: Mapping[str, Any] | None = None,
) -> Skeleton:
    """Build the model that a folder's config describes, without memory for its weights.

    It is a language model, or what gives texts labels, or what is below another head.

    Args:
        folder: with `config.json`.
        device: of torch, such as `cpu` or `cuda`.
        dtype: `float32` or `bfloat16`.
        config: fields in place of those of the file.

    Raises:
        RecipeError: transformers does not know the architecture, or it has no layers to run.
        DataError: the config is damaged.
    """
    import torch
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(folder, **(config or {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"its config cannot be used: {str(error).splitlines()[0]}",
            str(folder),
            "run a model of an architecture that the installed transformers has",
        ) from error
    torch_dtype, head = getattr(torch, dtype), head_of(found)
    kind = {"language": "causal language model", "labels": "model that gives texts labels"}
    try:
        with torch.device("meta"):
            model = from_config(found, head, torch_dtype)
    except ValueError as error:
        raise RecipeError(
            f"`{found.model_type}` is no {kind.get(head, 'model')} that transformers builds",
            str(folder),
            "its forward pass cannot be run here",
        ) from error
    name, layers = _layers(model, str(folder))
    places = tuple(Place(i, f"{name}.{i}", module) for i, module in enumerate(layers))
    return Skeleton(model, places, torch.device(device), torch_dtype, head)


def _layers(model: Any, where: str) -> tuple[str, Any]:
    """Return the list of decoder layers, or of an encoder's, and its name."""
    from torch import nn

    inside = {id(module) for module in model.get_decoder().modules()}
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if id(module) in inside and isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise RecipeError(
        f"`{model.config.model_type}` keeps its {count} layers in a way that is not known here",
        where,
        "its forward pass cannot be run layer by layer",
    )
