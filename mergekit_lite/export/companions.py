"""Carry every file of the donor that is not weights into the output, byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

WEIGHT_SUFFIXES = frozenset(
    {
        ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx",
        ".onnx_data", ".npz",
    }
)  # fmt: skip
"""Endings of files that hold weights, or training state, in any framework's format."""

OWN_FILES = frozenset(
    {"config.json", "README.md", "recipe.lock.yaml", "merge_report.json", ".gitattributes"}
)
"""Top-level files that a merge writes itself, or that belong to the donor's repository only."""

ROUTED_FILES = frozenset(
    {
        "moe_manifest.json", "carve_neurons.json", "freeze_mask.json", "gate_sums",
        "configuration_routed.py", "modeling_routed.py",
    }
)  # fmt: skip
"""Files and folders that say what a routed model is made of, which a dense one is not."""


def is_weights(path: Path) -> bool:
    """Return whether a file holds weights or is the index over such files."""
    suffixes = {suffix.lower() for suffix in path.suffixes}
    return not WEIGHT_SUFFIXES.isdisjoint(suffixes)


def copy_companions(root: Path, companions: Iterable[Path], folder: Path) -> list[str]:
    """Copy the donor's companions from `root` into `folder`; return their relative paths.

    Args:
        root: folder of the base model; a single weight file has no companions.
        companions: paths relative to `root`: tokenizer, templates, generation settings,
            processors, licences, code.
        folder: folder of the output, which exists.
    """
    copied = []
    for path in sorted(companions):
        if path.as_posix() in OWN_FILES or is_weights(path):
            continue
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, target)
        copied.append(path.as_posix())
    return copied
