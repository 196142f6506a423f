"""Reads PyTorch pickles as tensors and nothing else; no code that they name is ever run."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.checkpoint.folder import PICKLE_SUFFIXES
from mergekit_lite.checkpoint.parse import FRESH_TEXT, parse_json
from mergekit_lite.errors import DataError, Problem, RecipeError, SourceError

if TYPE_CHECKING:
    import torch

INDEX = "pytorch_model.bin.index.json"
_SET = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?P<end>\.\w+)")
# What trainers leave beside weights.
_STATES = re.compile(r"training_args|optimizer|scheduler|scaler|rng_state.*|trainer_state")
_GLOBAL = re.compile(
    r"(?:Unsupported global: GLOBAL|Trying to call reduce for unrecognized function) ([\w.<>]+)"
)
_SHOWN = 5


def pickle_files(source: Path) -> list[Path]:
    """Return the weight files of a folder of pickles, in order, or the one that is given.

    Raises:
        SourceError: there are none.
        RecipeError: the folder holds safetensors, or not all files of a set, or several sets.
        DataError: the index is damaged.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise SourceError(f"there is no folder or file `{source}`")
    names = sorted(path.name for path in source.iterdir() if path.is_file())
    if ready := [name for name in names if name.endswith(".safetensors")]:
        raise RecipeError(
            f"`{source}` holds safetensors already (`{ready[0]}`)",
            hint="merge it as it is; remove these files if they are not the model",
        )
    found = [
        name
        for name in names
        if name.endswith(PICKLE_SUFFIXES) and not _STATES.fullmatch(name.rpartition(".")[0])
    ]
    if INDEX in names:
        found = _of_index(source / INDEX)
    elif "pytorch_model.bin" in found:
        found = ["pytorch_model.bin"]
    if not found:
        raise SourceError(
            f"`{source}` holds no PyTorch pickles",
            hint="give the folder that holds the *.bin files",
        )
    _require_set(source, found, names)
    return [source / name for name in found]


def _of_index(path: Path) -> list[str]:
    files = parse_json(path.read_bytes(), str(path), FRESH_TEXT).get("weight_map")
    if not isinstance(files, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in files.values()
    ):
        raise DataError(f"`{path}`: `weight_map` is not a map to files beside it", hint=FRESH_TEXT)
    return sorted(set(files.values()))


def _require_set(source: Path, found: list[str], names: list[str]) -> None:
    absent = [name for name in found if name not in names]
    sets = [match for name in found if (match := _SET.fullmatch(name))]
    if sets and len(sets) == len(found) and len({match["stem"] for match in sets}) == 1:
        count = int(sets[0]["count"])
        there = {int(match["number"]) for match in sets}
        absent += [f"file {n} of {count}" for n in range(1, count + 1) if n not in there]
    elif len(found) > 1 and INDEX not in names:
        raise RecipeError(
            f"`{source}` holds several pickles: {', '.join(found[:_SHOWN])}",
            hint="give the one that holds the weights",
        )
    if absent:
        raise RecipeError(
            f"`{source}` lacks {', '.join(absent[:_SHOWN])}",
            hint="the download or the copy did not finish: fetch the missing files",
        )


def read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of one pickle by name, read by torch's reader of plain weights.

    Raises:
        DataError: the file asks for anything else than tensors, or is damaged.
        RecipeError: it holds other values beside tensors.
        SourceError: it cannot be read.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of the file's format
            loaded: Any = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from None
    except OSError as error:
        raise SourceError(f"cannot read `{path}`: {error.strerror or error}") from error
    except Exception as error:  # torch raises many kinds for damaged files
        first = str(error).strip().splitlines()[:1]
        raise DataError(
            f"`{path}` cannot be read: {first[0] if first else type(error).__name__}",
            hint=FRESH_TEXT,
        ) from None
    return _tensors(path, loaded)


def _refusal(path: Path, text: str) -> DataError:
    match = _GLOBAL.search(text)
    asks = (
        f"asks for `{match[1]}`, which is no tensor" if match else "is no pickle of plain tensors"
    )
    return DataError(
        f"`{path}` {asks}; nothing of it was run",
        hint="a pickle can run any code; do not load this one by other means unless you trust where"
        " it comes from",
    )


def _tensors(path: Path, loaded: Any) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(loaded, Mapping):
        raise RecipeError(
            f"`{path}` holds a {type(loaded).__name__}, not tensors by name",
            hint="save the model's state_dict()",
        )
    others = [
        f"`{name}` ({type(value).__name__})"
        for name, value in loaded.items()
        if not isinstance(value, torch.Tensor) or not isinstance(name, str)
    ]
    if others:
        rest = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise RecipeError(
            f"`{path}` holds more than tensors: {', '.join(others[:_SHOWN])}{rest}",
            hint="save the model's state_dict() alone, without the state of a training run",
        )
    if odd := [f"`{name}`" for name, value in loaded.items() if not _is_plain(value)]:
        raise RecipeError(
            [
                Problem(
                    f"`{path}` holds tensors that are sparse, quantised or without data:"
                    f" {', '.join(odd[:_SHOWN])}",
                    hint="save dense tensors",
                )
            ]
        )
    return dict(loaded)


def _is_plain(value: torch.Tensor) -> bool:
    import torch

    return value.layout == torch.strided and not value.is_quantized and not value.is_meta
