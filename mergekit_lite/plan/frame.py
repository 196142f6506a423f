"""The tensors that the output may have, before the rules decide about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_lite.checkpoint import TensorInfo, layer_count, layer_of, role_of


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor of the output.

    Attributes:
        info: its name, and the dtype and shape of what it is made from.
        layer: its layer in the output, None outside the layers.
        role: the part it plays.
        slice: which of the recipe's slices it belongs to.
        members: inputs that have a layer there, None where all have a part.
        donor: the input whose tensor it is where nothing is merged.
    """

    info: TensorInfo
    layer: int | None
    role: str
    slice: int | None = None
    members: tuple[str, ...] | None = None
    donor: str = "base"

    @property
    def name(self) -> str:
        return self.info.name

    def has(self, source: str) -> bool:
        """Return whether an input has a part in it."""
        return self.members is None or source in self.members


@dataclass(frozen=True)
class Frame:
    """All tensors of the output, in the order in which they are written.

    Attributes:
        targets: the tensors.
        layers: number of layers of the output.
        layer_map: of an assembled model, where each layer comes from.
    """

    targets: Sequence[Target]
    layers: int
    layer_map: tuple[Mapping[str, Any], ...] = ()


def plain_target(info: TensorInfo) -> Target:
    """Return the target that stands for a tensor of the base."""
    return Target(info, layer_of(info.name), role_of(info.name))


def plain_frame(tensors: Iterable[TensorInfo]) -> Frame:
    """Return the frame of an output that has the base's tensors."""
    targets = [plain_target(info) for info in tensors]
    return Frame(targets, layer_count(target.name for target in targets))
