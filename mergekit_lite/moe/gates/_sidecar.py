"""The sums of ridge gates, kept beside the model in a folder that loaders do not look into."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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


def _file(folder: Path, layer: int) -> Path:
    return folder / FOLDER / f"layer-{layer:05d}.safetensors"
