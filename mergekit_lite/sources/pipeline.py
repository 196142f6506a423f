"""Folders of several models, as diffusers writes them: a component in each subfolder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mergekit_lite.checkpoint import Header, TensorInfo, read_checkpoint
from mergekit_lite.errors import DataError, MergekitLiteError, SourceError

PIPELINE_FILE = "model_index.json"


def is_pipeline(folder: Path) -> bool:
    """Return whether a folder holds a pipeline, whose weights are in its subfolders."""
    return (folder / PIPELINE_FILE).is_file()


def read_pipeline(folder: Path) -> Header:
    """Read the headers of all components; their tensors are called `COMPONENT/NAME`.

    Raises:
        SourceError: no component has weights.
        RecipeError, DataError: those of one cannot be read.
    """
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, int] = {}
    warnings: list[str] = []
    faults: list[MergekitLiteError] = []
    for component in components_of(folder):
        try:
            header = read_checkpoint(folder / component)
        except MergekitLiteError as error:
            faults.append(error)
            continue
        start = f"{component}/"
        files |= {start + file: size for file, size in header.files.items()}
        for name, info in header.tensors.items():
            tensors[start + name] = replace(info, name=start + name, file=start + info.file)
        warnings += header.warnings
    if faults:
        kind = DataError if any(isinstance(f, DataError) for f in faults) else type(faults[0])
        raise kind([problem for fault in faults for problem in fault.problems])
    if not tensors:
        raise SourceError(
            f"no component of `{folder}` holds safetensors weights",
            hint="fetch the pipeline again with its *.safetensors files",
        )
    stray = sorted(path.name for path in folder.glob("*.safetensors"))
    warnings += [f"`{folder}`: `{name}` is beside the components and is ignored" for name in stray]
    return Header(tensors, files, {}, tuple(warnings))


def components_of(folder: Path) -> Sequence[str]:
    """Return the subfolders that hold weights in safetensors files."""
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and any(path.glob("*.safetensors"))
    )
