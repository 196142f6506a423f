"""Statistics on disk: a folder for each kind, a file for each layer, and where they come from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.checkpoint import ShardWriter, header_text, read_checkpoint
from mergekit_lite.checkpoint.index import INDEX_NAME, index_text
from mergekit_lite.errors import DataError, RecipeError, SourceError
from mergekit_lite.folders import write_json

if TYPE_CHECKING:
    from torch import Tensor

RECORD = "calibration.json"
STATE = "state.json"
_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
}


class Store:
    """Statistics that are being measured; they appear at `out` complete or not at all.

    What is finished of an interrupted measurement with the same record is taken up.

    Args:
        out: folder to make.
        record: where the statistics come from; another record starts anew.
        overwrite: replace a folder that holds statistics.

    Raises:
        RecipeError: `out` is there and may not be replaced.
    """

    def __init__(self, out: Path, record: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.out, self.record, self.overwrite = out, record, overwrite
        self.work = out.with_name(f"{out.name}.partial")
        check_free(out, overwrite)
        self.done = 0
        if self.work.is_dir() and self._state().get("record") == record:
            self.done = int(self._state()["done"])
        else:
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir(parents=True)
            self.note(0)

    def put(self, layer: int | None, kind: str, tensors: Mapping[str, Tensor]) -> None:
        """Write what was measured of one layer; None stands for what is outside the layers."""
        if tensors:
            (self.work / kind).mkdir(exist_ok=True)
            metadata = {"format": "pt", "statistic": kind, **_texts(self.record)}
            write_tensors(self.work / kind / _file(layer), tensors, metadata)

    def keep(self, layer: int, hidden: list[Tensor], *, earlier: bool = False) -> None:
        """Note that a layer is done, with the hidden states that leave it.

        Args:
            layer: its number.
            hidden: of each batch.
            earlier: leave those that entered it where they are.
        """
        forget = "" if earlier else f"hidden-{layer}"
        self.keep_states(layer + 1, f"hidden-{layer + 1}", hidden, forget=forget)

    def keep_states(
        self, done: int, name: str, states: Sequence[Tensor], *, forget: str = ""
    ) -> None:
        """Note that some steps are done, with the states that the next one begins with.

        Args:
            done: steps that are done.
            name: that the states are asked for by.
            states: of each batch.
            forget: name of states that are wanted no more.
        """
        numbered = {f"{number:06d}": value for number, value in enumerate(states)}
        write_tensors(self.work / f"{name}.safetensors", numbered, {"format": "pt"})
        self.note(done)
        if forget:
            (self.work / f"{forget}.safetensors").unlink(missing_ok=True)

    def states(self, name: str) -> list[Tensor]:
        """Return states that were kept."""
        from safetensors.torch import load_file

        states = load_file(self.work / f"{name}.safetensors")
        return [states[number] for number in sorted(states)]

    def kept(self) -> list[Tensor]:
        """Return the hidden states that enter the first layer that is not done."""
        return self.states(f"hidden-{self.done}")

    def finish(self) -> None:
        """Write the record and the indexes, and put the folder in place."""
        for folder in sorted(path for path in self.work.iterdir() if path.is_dir()):
            _write_index(folder)
        (self.work / STATE).unlink()
        for file in self.work.glob("*.safetensors"):
            file.unlink()
        write_json(self.work / RECORD, self.record)
        if self.out.exists():
            shutil.rmtree(self.out)
        self.work.rename(self.out)

    def _state(self) -> dict[str, Any]:
        try:
            value = json.loads((self.work / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def note(self, done: int) -> None:
        """Note that some steps are done."""
        text = json.dumps({"record": self.record, "done": done})
        fresh = self.work / f"{STATE}.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(self.work / STATE)
        self.done = done


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse a folder that is there, unless it holds statistics and may be replaced.

    Raises:
        RecipeError: it may not.
    """
    if not out.exists():
        return
    if not (out / RECORD).is_file():
        raise RecipeError("is there and holds no statistics", str(out), "name another folder")
    if not overwrite:
        raise RecipeError(
            "the statistics are there already", str(out), "give --overwrite, or another folder"
        )


def read_record(folder: Path) -> dict[str, Any]:
    """Return where the statistics of a folder come from.

    Raises:
        SourceError: the folder holds no statistics.
        DataError: its record is damaged.
    """
    try:
        value = json.loads((folder / RECORD).read_bytes())
    except OSError as error:
        raise SourceError(
            f"`{folder}` holds no statistics", hint="make them with `mergekit-lite calibrate`"
        ) from error
    except ValueError as error:
        raise DataError(f"`{folder / RECORD}` is damaged: {error}", hint="measure again") from error
    if not isinstance(value, dict):
        raise DataError(f"`{folder / RECORD}` is damaged", hint="measure again")
    return value


def read_layer(folder: Path, kind: str, layer: int) -> dict[str, Tensor]:
    """Return the statistics of one kind and layer by name, nothing where there are none.

    Raises:
        SourceError: nothing of this kind was collected.
    """
    from safetensors.torch import load_file

    if not (folder / kind).is_dir():
        raise SourceError(
            f"`{folder}` has no statistics of the kind `{kind}`",
            hint=f"measure again with `--collect {kind}`",
        )
    file = folder / kind / _file(layer)
    found: dict[str, Tensor] = load_file(file) if file.is_file() else {}
    return found


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that appears complete or not at all.

    Tensors may share memory: each name gets its own copy of the bytes.
    """
    import torch

    named = [(name, _DTYPES[str(t.dtype)], tuple(t.shape)) for name, t in tensors.items()]
    text, starts, nbytes = header_text(named, metadata)
    writer = ShardWriter(path.with_name(f"{path.name}.new"), path, text, nbytes)
    try:
        for value, start in zip(tensors.values(), starts, strict=True):
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            writer.write(raw, start)
        writer.finish()
    except BaseException:
        writer.discard()
        raise


def _file(layer: int | None) -> str:
    return "outside.safetensors" if layer is None else f"layer-{layer:05d}.safetensors"


def _texts(record: Mapping[str, Any]) -> dict[str, str]:
    """Return a record as strings, which is all that a header holds."""
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in record.items()
    }


def _write_index(folder: Path) -> None:
    tensors = read_checkpoint(folder).tensors
    files = {name: info.file for name, info in tensors.items()}
    nbytes = sum(info.nbytes for info in tensors.values())
    text = index_text(files, nbytes, sum(info.size for info in tensors.values()))
    (folder / INDEX_NAME).write_text(text, encoding="utf-8")
