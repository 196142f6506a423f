"""The sums of ridge gates, kept beside the model in a folder that loaders do not look into."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_lite.checkpoint import read_checkpoint
from mergekit_lite.errors import SourceError
from mergekit_lite.moe.gates._equations import Equations

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FOLDER = "gate_sums"


def write_equations(folder: Path, layer: int, equations: Equations) -> None:
    """Write the equations of one layer, fp32 but for the counts."""
    import numpy as np
    from safetensors.numpy import save_file

    (folder / FOLDER).mkdir(exist_ok=True)
    save_file(
        {
            "gram": equations.gram.astype(np.float32),
            "totals": equations.totals.astype(np.float32),
            "counts": equations.counts.astype(np.float64),
            "weight": np.array([equations.weight], np.float64),
        },
        _file(folder, layer),
    )


def read_equations(folder: Path, layer: int) -> Equations:
    """Return the equations of one layer, in fp64."""
    from safetensors.numpy import load_file

    found: dict[str, NDArray[np.float64]] = {
        key: value.astype("float64") for key, value in load_file(_file(folder, layer)).items()
    }
    return Equations(found["gram"], found["totals"], found["counts"], float(found["weight"][0]))


def known_experts(folder: Path, layers: Iterable[int], hidden: int) -> int:
    """Return how many experts the sums beside an earlier result know, from headers alone.

    Raises:
        SourceError: sums of a layer are missing, or of another width or number of experts.
    """
    shapes = set()
    for layer in layers:
        file = _file(folder, layer)
        if not file.is_file():
            raise SourceError(
                f"`{folder}` has no sums of the routers of layer {layer}",
                hint="name the folder of a result whose gate is `ridge`",
            )
        shapes.add(read_checkpoint(file).tensors["totals"].shape)
    if len(shapes) != 1 or {shape[1] for shape in shapes} != {hidden}:
        raise SourceError(f"the sums in `{folder}` are of routers of another model")
    return int(shapes.pop()[0])


def _file(folder: Path, layer: int) -> Path:
    return folder / FOLDER / f"layer-{layer:05d}.safetensors"
