"""The file of gates: every tensor of a routed model that no input has, made before the rows run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import read_checkpoint
from mergekit_lite.checkpoint.header import header_text
from mergekit_lite.errors import DataError, MergekitLiteError
from mergekit_lite.folders import write_json
from mergekit_lite.moe.carve._layer import Material
from mergekit_lite.moe.carve.make import make_carve
from mergekit_lite.moe.gates import GateRequest, Gates, Measure, registry
from mergekit_lite.ops._place import random_key
from mergekit_lite.ops._random import normals
from mergekit_lite.plan.digests import file_sha256
from mergekit_lite.plan.types import Plan

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

GATE_FILE = "gates.safetensors"
FACTS_FILE = "gates.json"
BESIDE = "beside"
"""Folder of files that a method has made and that go into the output."""
TINY = 2.0**-30
"""Scale of a row whose sigmoid is to be a half. Not 0: llama.cpp takes sigmoid(x) as silu(x)/x."""
SPREADS = {"tiny": TINY, "normal": 0.02}
"""Standard deviation of random entries by kind of row."""

Array = NDArray[np.float32]


def make_gates(
    plan: Plan,
    models: Mapping[str, Model],
    folder: Path,
    measure: Measure | None,
    say: Callable[[str], object],
    material: Material | None = None,
) -> Path:
    """Make the file of gates of a plan, unless an earlier run of the same plan has.

    Args:
        plan: of a routed model.
        models: its inputs, opened.
        folder: where the file goes; what is there of it is used if it is of this plan.
        measure: runs texts; None where the method needs none.
        say: tells the user what is going on.
        material: the base, for a model that is carved.

    Raises:
        DataError: a method gives other rows than asked for, or rows that are not finite.
    """
    path, digest = folder / GATE_FILE, _digest(plan)
    if is_of(path, digest):
        return path
    path.unlink(missing_ok=True)
    shutil.rmtree(folder / BESIDE, ignore_errors=True)
    (folder / BESIDE).mkdir(parents=True)
    request = request_of(plan, models, folder / BESIDE, measure, say)
    if material is not None:
        gates = make_carve(request, material)
    else:
        spec = registry()[plan.moe["gate"]["method"]]
        gates = spec.make(request, **spec.arguments(plan.moe["gate"]["params"]))
    write_json(folder / FACTS_FILE, dict(gates.facts))
    # Last, and whole or not at all: a folder that has it needs no gates made.
    unfinished = path.with_suffix(".partial")
    write_tensors(unfinished, _tensors(plan, gates), {"mergekit_lite.plan": digest})
    unfinished.replace(path)
    return path


def _digest(plan: Plan) -> str:
    """Return what gates depend on: the plan and the texts that it names."""
    digest = hashlib.sha256(plan.content_digest().encode())
    for part in (*plan.moe["experts"], plan.moe.get("carve", {})):
        if part.get("data"):
            digest.update(file_sha256(Path(plan.folder) / part["data"]).encode())
    if file := plan.moe["gate"]["params"].get("embeddings"):
        digest.update(file_sha256(Path(plan.folder) / file).encode())
    if earlier := plan.moe["gate"]["params"].get("earlier"):
        for file in sorted((Path(plan.folder) / earlier / "gate_sums").glob("*")):
            digest.update(file_sha256(file).encode())
    return digest.hexdigest()


def request_of(
    plan: Plan,
    models: Mapping[str, Model],
    folder: Path,
    measure: Measure | None,
    say: Callable[[str], object],
) -> GateRequest:
    """Return what a method is asked for."""
    moe = plan.moe
    return GateRequest(
        plan=plan,
        models=models,
        routers={layer: name for name, _, kind, layer in moe["rows"] if kind == "router"},
        experts=tuple(moe["experts"]),
        hidden=moe["hidden"],
        per_token=moe["experts_per_token"] // moe.get("split", 1),
        seed=plan.seed,
        texts=Path(plan.folder),
        folder=folder,
        measure=measure,
        say=say,
    )


def _tensors(plan: Plan, gates: Gates) -> dict[str, Array]:
    found = {}
    method = plan.moe["gate"]["method"]
    for name, shape, kind, layer in plan.moe["rows"]:
        if kind == "bias":
            found[name] = _bias(gates, layer, shape, plan.moe.get("split", 1))
        elif kind in SPREADS:
            key = random_key(plan.seed, f"gate.{kind}", "", name)
            found[name] = (normals(0, int(np.prod(shape)), key) * SPREADS[kind]).astype(np.float32)
        elif kind == "zeros":
            found[name] = np.zeros(shape, np.float32)
        elif kind == "order":
            found[name] = gates.orders[layer]
        elif kind == "named":
            found[name] = gates.named[name]
        else:
            rows = gates.rows.get(layer)
            if rows is not None:
                # The slices of an expert are chosen together.
                rows = np.repeat(rows, plan.moe.get("split", 1), axis=0)
            if rows is None or list(rows.shape) != list(shape):
                has = "none" if rows is None else "x".join(map(str, rows.shape))
                what = f"the gate `{method}` has rows {has}, wanted {'x'.join(map(str, shape))}"
                raise DataError(what, where=name)
            found[name] = np.ascontiguousarray(rows, np.float32)
        found[name] = found[name].reshape(shape)
        if not np.isfinite(found[name]).all():
            raise DataError(
                f"the gate `{method}` has rows that are not finite",
                where=name,
                hint="look at the texts that it was made from, or take another method",
            )
    return found


def _bias(gates: Gates, layer: int, shape: Sequence[int], split: int) -> Array:
    own = gates.biases.get(layer)
    if own is None:
        return np.zeros(shape, np.float32)
    return np.repeat(own, split).astype(np.float32)


def is_of(path: Path, digest: str) -> bool:
    """Return whether a file of gates is whole, and of the plan with this digest."""
    if not path.is_file():
        return False
    try:
        return read_checkpoint(path).metadata.get("mergekit_lite.plan") == digest
    except MergekitLiteError:
        return False


def write_tensors(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write fp32 tensors as a safetensors file."""
    listed = [(name, "F32", tuple(value.shape)) for name, value in tensors.items()]
    header, starts, nbytes = header_text(listed, metadata)
    data = header.encode()
    with path.open("wb") as stream:
        stream.truncate(nbytes)
        stream.write(len(data).to_bytes(8, "little") + data)
        for value, start in zip(tensors.values(), starts, strict=True):
            stream.seek(start)
            stream.write(np.ascontiguousarray(value, "<f4").tobytes())


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what a method has said of how the gates were made."""
    found: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    return found
