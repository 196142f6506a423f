"""Finds the files of a model's folder that go with the weights wherever they go."""

from __future__ import annotations

import os
import re
from pathlib import Path

_WEIGHTS = re.compile(
    r".*(\.(safetensors|bin|pt|pth|ckpt|gguf|onnx|onnx_data|h5|msgpack|npz|pkl|pickle|tflite|ot)"
    r"|\.index\.json|\.partial)$",
    re.IGNORECASE,
)
# A merge writes its own of these; an adapter's configuration would turn the output into one.
_REPLACED = frozenset({"README.md", "recipe.lock.yaml", "merge_report.json", "adapter_config.json"})


def companions_of(folder: Path) -> tuple[Path, ...]:
    """Return every file of `folder` that is not weights, as sorted paths relative to it.

    A list of refusals, not of known names: a file that nobody thought of is carried too.
    Subfolders are included; hidden files and folders, and the folders in which a training run
    keeps its earlier states (`checkpoint-500`), are not.

    Raises:
        OSError: a subfolder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    found = []
    for place, folders, files in os.walk(folder, onerror=fail):
        here = Path(place)
        folders[:] = [name for name in folders if not _is_foreign(name)]
        for name in files:
            top = here == folder and name in _REPLACED
            if not (top or name.startswith(".") or _WEIGHTS.match(name)):
                found.append((here / name).relative_to(folder))
    return tuple(sorted(found))


def _is_foreign(folder_name: str) -> bool:
    hidden = folder_name.startswith((".", "__pycache__"))
    return hidden or bool(re.fullmatch(r"checkpoint-\d+|.*\.partial", folder_name))
