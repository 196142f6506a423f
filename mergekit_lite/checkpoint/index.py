"""The index of a sharded checkpoint, and how its files are called."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mergekit_lite.checkpoint.parse import FRESH_TEXT, parse_json
from mergekit_lite.errors import DataError, Problem, RecipeError, SourceError

INDEX_SUFFIX = ".safetensors.index.json"
INDEX_NAME = "model" + INDEX_SUFFIX
DIFFUSERS_STEM = "diffusion_pytorch_model"


@dataclass(frozen=True)
class Index:
    """What an index file says.

    Attributes:
        file: name of the index file.
        weight_map: tensor name -> file name.
        total_size: bytes of all tensors, None where the index does not say.
    """

    file: str
    weight_map: Mapping[str, str]
    total_size: int | None = None

    @property
    def files(self) -> list[str]:
        """Names of the weight files, sorted."""
        return sorted(set(self.weight_map.values()))


def read_index(path: Path) -> Index:
    """Read and check the index file at `path`.

    Raises:
        DataError: the file is malformed, or an entry points outside the folder.
        RecipeError: the index lists files of another format.
        SourceError: the file cannot be read.
    """
    try:
        raw = parse_json(path.read_bytes(), str(path), FRESH_TEXT)
    except OSError as error:
        raise SourceError(f"cannot read `{path}`: {error.strerror or error}") from error
    weight_map = raw.get("weight_map")
    if not isinstance(weight_map, dict) or not all(type(f) is str for f in weight_map.values()):
        raise DataError(f"`{path}`: `weight_map` is not a map of strings", hint=FRESH_TEXT)
    files = sorted(set(weight_map.values()))
    if outside := [file for file in files if _leaves_folder(file)]:
        raise DataError(
            [
                Problem(
                    f"`{path}` points outside its folder: {file!r}",
                    hint="do not trust this checkpoint: an index names files beside it only",
                )
                for file in outside
            ]
        )
    if other := [file for file in files if not file.endswith(".safetensors")]:
        raise RecipeError(
            f"`{path}` lists `{other[0]}`, which is not a safetensors file",
            hint=f"convert it first: `mergekit-lite convert {path.parent} -o DIR`",
        )
    metadata = raw.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    # Some writers store the size as a float.
    if not isinstance(total, int | float) or not math.isfinite(total):
        return Index(path.name, weight_map)
    return Index(path.name, weight_map, int(total))


def index_text(weight_map: Mapping[str, str], total_size: int, total_parameters: int) -> str:
    """Return the text of an index file, as transformers writes it.

    Args:
        weight_map: tensor name -> file name.
        total_size: bytes of all tensors, headers not counted.
        total_parameters: entries of all tensors.
    """
    metadata = {"total_parameters": total_parameters, "total_size": total_size}
    value = {"metadata": metadata, "weight_map": dict(weight_map)}
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def shard_names(count: int, stem: str = "model") -> list[str]:
    """Return the names of the `count` weight files of a checkpoint."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def part_of(file: str) -> str:
    """Return how the weight files of one model begin: `model`, or `unet/diffusion_pytorch_model`.

    Loaders look for either of two names; what stands behind it (a variant, a number) is left out.
    """
    folder, slash, name = file.rpartition("/")
    stem = DIFFUSERS_STEM if name.startswith(DIFFUSERS_STEM) else "model"
    return folder + slash + stem


def _leaves_folder(file: str) -> bool:
    # Lexical on purpose: files of a download cache are links that lead out of their folder.
    path = PurePosixPath(file.replace("\\", "/"))
    drive = len(path.parts) > 0 and path.parts[0].endswith(":")
    return path.is_absolute() or drive or ".." in path.parts or "\0" in file or file == ""
