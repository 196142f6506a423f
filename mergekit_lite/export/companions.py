"""Carry every file of the donor that is not weights into the output, byte for byte."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

WEIGHT_SUFFIXES = frozenset(
    ".safetensors .bin .pt .pth .ckpt .h5 .msgpack .gguf .onnx .onnx_data .npz .pkl .tflite".split()
)
"""Endings of files that hold weights, or training state, in any framework's format."""

OWN_FILES = frozenset(
    {"config.json", "README.md", "recipe.lock.yaml", "merge_report.json", ".gitattributes"}
)
"""Top-level files that a merge writes itself, or that belong to the donor's repository only."""


def is_weights(path: Path) -> bool:
    """Return whether a file holds weights or is the index over such files."""
    suffixes = {suffix.lower() for suffix in path.suffixes}
    return not WEIGHT_SUFFIXES.isdisjoint(suffixes)


def companion_files(root: Path) -> list[Path]:
    """Return the paths, relative to `root`, of all files that go with the weights.

    Tokenizer, templates, generation settings, processors, licences, code: a list of refusals, not
    of known names, so that a file nobody thought of is carried too. Hidden folders stay behind.
    """
    if not root.is_dir():
        return []
    found = []
    # Files may be links: those of a download cache are links out of their folder.
    for folder, folders, files in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(folder).relative_to(root)
        for name in sorted(files):
            path = here / name
            own = str(path) in OWN_FILES
            if not own and not is_weights(path) and (root / path).is_file():
                found.append(path)
    return sorted(found)


def copy_companions(root: Path, folder: Path) -> list[str]:
    """Copy the donor's companions from `root` into `folder`; return their relative paths.

    Args:
        root: folder of the base model; a single weight file has no companions.
        folder: folder of the output, which exists.
    """
    copied = []
    for path in companion_files(root):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, target)
        copied.append(path.as_posix())
    return copied
