"""Models in a folder of this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_lite.checkpoint import FileReader, read_adapter, read_checkpoint
from mergekit_lite.checkpoint.folder import ADAPTER_FILE, PICKLE_SUFFIXES
from mergekit_lite.checkpoint.index import INDEX_SUFFIX
from mergekit_lite.checkpoint.parse import FRESH_TEXT
from mergekit_lite.checkpoint.patch import is_patch
from mergekit_lite.checkpoint.store import is_store
from mergekit_lite.errors import DataError, RecipeError, SourceError, nearest
from mergekit_lite.sources._types import Model
from mergekit_lite.sources.companions import companions_of
from mergekit_lite.sources.pipeline import is_pipeline, read_pipeline
from mergekit_lite.sources.quantization import LEFT_OUT, read_quantised

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


class LocalSource:
    """A folder that holds a sharded or unsharded checkpoint, or a LoRA adapter."""

    name = "folder"

    def accepts(self, reference: str) -> bool:
        """Accept every reference: this source comes last, and says what is wrong with it."""
        return True

    def resolve(self, reference: str, relative_to: Path) -> Model:
        """Return the model in a folder.

        Raises:
            SourceError: there is no such folder, or it holds no weights.
            RecipeError, DataError: it cannot be merged, or it is damaged.
        """
        path = local_path(reference, relative_to)
        if not path.is_dir():
            raise _not_a_folder(reference, path)
        folder = path.resolve()
        if is_adapter(folder):
            adapter = read_adapter(folder)
            return Model(
                reference=reference,
                root=folder,
                kind="adapter",
                revision="",
                header=adapter.header,
                config=None,
                companions=companions_of(folder),
                adapter=adapter,
                open=lambda file: FileReader(folder / file),
            )
        config = read_config(folder)
        header = read_pipeline(folder) if is_pipeline(folder) else read_checkpoint(folder)
        if is_patch(header) or is_store(header):
            kind = "patch" if is_patch(header) else "store"
            raise RecipeError(
                f"`{folder}` holds a {kind}, not a model",
                hint=f"give the file: `{folder / next(iter(header.files))}`",
            )
        reading, unreadable = read_quantised(header, config, folder)
        companions = companions_of(folder)
        if reading.format:
            companions = tuple(path for path in companions if path.name not in LEFT_OUT)
        return Model(
            reference=reference,
            root=folder,
            kind="checkpoint",
            revision="",
            header=reading.header,
            config=config,
            companions=companions,
            adapter=None,
            open=lambda file: FileReader(folder / file),
            quantization=reading.format,
            unreadable=unreadable,
            stored=header if reading.format else None,
        )


def local_path(reference: str, relative_to: Path) -> Path:
    """Return the path a reference spells: `~` and variables expanded, relative to a folder.

    Raises:
        SourceError: a variable is not set.
    """
    text = os.path.expanduser(os.path.expandvars(reference))
    if "$" in text and not (relative_to / text).exists():
        raise SourceError(
            f"`{reference}` names an environment variable that is not set",
            hint="export it in the shell that runs the command, or write the path out",
        )
    return relative_to / text


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds a LoRA adapter and no whole model."""
    names = [path.name for path in folder.iterdir()]
    if not {"adapter_config.json", ADAPTER_FILE} & set(names):
        return False
    return not any(name.endswith(".safetensors") and name != ADAPTER_FILE for name in names)


def read_config(folder: Path) -> Mapping[str, Any] | None:
    """Return a model's `config.json`, or None where there is none.

    Raises:
        DataError: the file is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"`{path}` does not hold valid JSON: {error}", hint=FRESH_TEXT) from error
    if not isinstance(value, dict):
        raise DataError(f"`{path}` does not hold a JSON object", hint=FRESH_TEXT)
    return value


def _not_a_folder(reference: str, path: Path) -> SourceError | RecipeError:
    if path.exists():
        return _wrong_file(path)
    if re.match(r"[a-z][a-z0-9+]*://", reference):
        return RecipeError(
            f"`{reference}` is an address; models by address are not supported by this version",
            hint="download the model and give the path of its folder",
        )
    if reference.startswith("@"):
        return RecipeError(
            f"`{reference}` names a stage, which only the recipe that has it knows",
            hint="name a folder or a file here",
        )
    advice = _nearest_sibling(path)
    if _HUB_NAME.fullmatch(reference):
        name, _, revision = reference.partition("@")
        fetch = f"hf download {name}{f' --revision {revision}' if revision else ''}"
        target = f"./{name.rpartition('/')[2]}"
        hint = f"download it with `{fetch} --local-dir {target}` and write `{target}` here"
        return SourceError(
            f"there is no folder `{reference}`, and Hub repositories are not fetched by this "
            "version",
            hint=f"{hint}; {advice}" if advice else hint,
        )
    return SourceError(
        f"there is no folder or file `{path}`",
        hint=advice or "give the folder that holds config.json and the *.safetensors files",
    )


def _wrong_file(path: Path) -> RecipeError:
    if path.name.endswith(INDEX_SUFFIX) or path.name == "config.json":
        return RecipeError(
            f"`{path}` is one file of a model", hint=f"give its folder: `{path.parent}`"
        )
    if path.suffix == ".gguf":
        return RecipeError(
            f"`{path}` is a GGUF file",
            hint="merging needs the 16-bit safetensors checkpoint it was made from",
        )
    if path.suffix in PICKLE_SUFFIXES:
        return RecipeError(
            f"`{path}` is a PyTorch pickle, which can run code when read",
            hint=f"convert it first: `mergekit-lite convert {path} -o DIR`",
        )
    return RecipeError(
        f"`{path}` is not a model", hint="give a folder or a file that ends in .safetensors"
    )


def _nearest_sibling(path: Path) -> str:
    """Return a suggestion from the first folder on the way to `path` that exists."""
    while not path.parent.is_dir():
        path = path.parent
    if path.exists():
        return f"`{path}` is a file, not a folder"
    try:
        return nearest(path.name, [entry.name for entry in path.parent.iterdir()])
    except OSError:
        return ""
