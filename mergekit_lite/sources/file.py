"""A model that is one safetensors file, with tensors of any names."""

from __future__ import annotations

from pathlib import Path

from mergekit_lite.checkpoint import FileReader, Header, read_checkpoint
from mergekit_lite.checkpoint.folder import ADAPTER_FILE, SHARD_NAME
from mergekit_lite.checkpoint.patch import is_patch, read_patch
from mergekit_lite.errors import RecipeError
from mergekit_lite.sources._types import Model
from mergekit_lite.sources.local import LocalSource, local_path
from mergekit_lite.sources.quantization import read_quantised


class FileSource:
    """A single `.safetensors` file, a patch too; what lies beside it is not looked at."""

    name = "file"

    def accepts(self, reference: str) -> bool:
        """Accept what ends in `.safetensors`."""
        return reference.endswith(".safetensors")

    def resolve(self, reference: str, relative_to: Path) -> Model:
        """Return the model in a file.

        Raises:
            SourceError: there is no such file.
            RecipeError: it is a part of a sharded model, or an adapter.
            DataError: it is damaged.
        """
        path = local_path(reference, relative_to)
        if not path.is_file():
            return LocalSource().resolve(reference, relative_to)
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
        if is_patch(header):
            return _patch(reference, root, header)
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
        open=lambda file: FileReader(root.parent / file),
    )
