"""A model that is one safetensors file, with tensors of any names."""

from __future__ import annotations

import re
from pathlib import Path

from mergekit_lite.checkpoint import FileReader, Header, read_checkpoint
from mergekit_lite.checkpoint.folder import ADAPTER_FILE, SHARD_NAME
from mergekit_lite.checkpoint.patch import is_patch, read_patch
from mergekit_lite.checkpoint.patch_shared import with_shared
from mergekit_lite.checkpoint.store import Store, is_store, read_store, read_task
from mergekit_lite.errors import RecipeError
from mergekit_lite.sources._types import Model
from mergekit_lite.sources.local import LocalSource, local_path
from mergekit_lite.sources.quantization import read_quantised

_TASK = re.compile(r"(?P<file>.*\.safetensors)#(?P<task>[^/#]+)")


class FileSource:
    """A single `.safetensors` file, a patch too; what lies beside it is not looked at.

    `FILE.safetensors#TASK` is one task of a store.
    """

    name = "file"

    def accepts(self, reference: str) -> bool:
        """Accept what ends in `.safetensors`, or names a task of such a file."""
        return reference.endswith(".safetensors") or _TASK.fullmatch(reference) is not None

    def resolve(self, reference: str, relative_to: Path) -> Model:
        """Return the model in a file.

        Raises:
            SourceError: there is no such file.
            RecipeError: it is a part of a sharded model, an adapter, or a store without a task.
            DataError: it is damaged.
        """
        match = _TASK.fullmatch(reference)
        file, task = (match["file"], match["task"]) if match else (reference, "")
        path = local_path(file, relative_to)
        if not path.is_file():
            return LocalSource().resolve(file, relative_to)
        if (match := SHARD_NAME.fullmatch(path.name)) and int(match["count"]) > 1:
            raise RecipeError(
                f"`{path}` is file {int(match['number'])} of a model of {int(match['count'])}",
                hint=f"give its folder: `{path.parent}`",
            )
        if path.name == ADAPTER_FILE:
            raise RecipeError(
                f"`{path}` holds the weights of a LoRA adapter, which need their configuration",
                hint=f"give its folder: `lora: {path.parent}`",
            )
        # The file's own name is kept where it is a link: names in a download cache are hashes.
        root = path.parent.resolve() / path.name
        header = read_checkpoint(root)
        if task or is_store(header):
            return _task(reference, task, root, header)
        if is_patch(header):
            return _patch(reference, *with_shared(root, header))
        reading, unreadable = read_quantised(header, None, root.parent)
        return Model(
            reference=reference,
            root=root,
            kind="checkpoint",
            revision="",
            header=reading.header,
            config=None,
            companions=(),
            adapter=None,
            open=lambda file: FileReader(root.parent / file),
            quantization=reading.format,
            unreadable=unreadable,
        )


def _patch(reference: str, root: Path, header: Header) -> Model:
    return Model(
        reference=reference,
        root=root,
        kind="patch",
        revision="",
        header=header,
        config=None,
        companions=(),
        adapter=read_patch(header, str(root)),
        open=lambda file: FileReader((root if root.is_dir() else root.parent) / file),
    )


def stored_tasks(reference: str, relative_to: Path) -> tuple[Store, Header] | None:
    """Return what a store says of itself, and its header; None for what is no store.

    Raises:
        DataError: it is damaged.
    """
    path = local_path(reference, relative_to)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    header = read_checkpoint(path.parent.resolve() / path.name)
    return (read_store(header, str(path)), header) if is_store(header) else None


def _task(reference: str, task: str, root: Path, header: Header) -> Model:
    if not is_store(header):
        hint = f"write `{root.name}` without `#{task}`"
        raise RecipeError(f"`{root}` is no store, and so has no task `{task}`", hint=hint)
    store = read_store(header, str(root))
    if not task:
        raise RecipeError(
            f"`{root}` is a store of {len(store.tasks)} tasks: {', '.join(store.tasks)}",
            hint=f"name one: `{{store: {reference}, task: {next(iter(store.tasks))}}}` in a recipe,"
            f" `{reference}#{next(iter(store.tasks))}` elsewhere",
        )
    adapter = read_task(store, task, header, f"{root}#{task}")
    return Model(
        reference=reference,
        root=root,
        kind="patch",
        revision="",
        header=adapter.header,
        config=None,
        companions=(),
        adapter=adapter,
        open=lambda file: FileReader(root.parent / file),
        task=task,
    )
