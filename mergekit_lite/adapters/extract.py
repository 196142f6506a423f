"""Takes a LoRA adapter out of a fine-tuned model: what it adds to its base, at a low rank."""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.adapters.lock import Making
from mergekit_lite.adapters.place import making
from mergekit_lite.checkpoint import role_of
from mergekit_lite.checkpoint.spool import Spool
from mergekit_lite.compress.low_rank import Wanted, factors
from mergekit_lite.engine.events import Event
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.supplies import slots_of
from mergekit_lite.engine.tiles import as_float32
from mergekit_lite.errors import DataError, Problem, RecipeError
from mergekit_lite.folders import write_json
from mergekit_lite.plan.adapter_config import PREFIX, WEIGHT_FILE, lora_config
from mergekit_lite.plan.layout import OUTPUT_DTYPES
from mergekit_lite.plan.types import Job, Plan

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

REPORT_FILE = "extract_report.json"


@dataclass(frozen=True)
class Module:
    """What became of one module.

    Attributes:
        name: path of the module.
        rank: of its factors.
        error: norm of what the stored factors miss over the norm of the delta.
        norm: of the delta.
    """

    name: str
    rank: int
    error: float
    norm: float


@dataclass(frozen=True)
class Extraction:
    """What was taken out of a model.

    Attributes:
        modules: those with factors.
        saved: modules that the adapter holds whole.
        biases: biases that it holds.
        unchanged: tensors that are the base's.
        error: norm of what all factors miss over the norm of all their deltas.
    """

    modules: tuple[Module, ...] = ()
    saved: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    unchanged: int = 0
    error: float = 0.0


@dataclass
class _Part:
    """The tensors that one row gives, ready to be written."""

    module: Module | None = None
    saved: str = ""
    bias: str = ""
    tensors: list[tuple[str, tuple[int, ...], NDArray[np.uint8]]] = field(default_factory=list)


def extract(
    plan: Plan,
    models: Mapping[str, Model],
    out: Path,
    wanted: Wanted,
    *,
    dtype: str = "float32",
    threads: int | None = None,
    overwrite: bool = False,
    emit: Callable[[Event], None],
) -> Extraction:
    """Write the adapter that turns a base into its fine-tune, as nearly as its rank allows.

    Linear layers get factors; embeddings, norms and other small tensors that differ are stored
    whole (`modules_to_save`); biases of linear layers as they are. One tensor for each thread is in
    memory at a time.

    Args:
        plan: of `base` and one expert, any chain: its rows say which tensors belong together.
        models: its inputs, opened.
        out: folder to make.
        wanted: rank or energy.
        dtype: of the stored factors: `float32`, `float16` or `bfloat16`.
        threads: rows at a time; one for each core by default.
        overwrite: replace a folder that is there.
        emit: told of progress.

    Raises:
        RecipeError: a tensor differs that has no place in an adapter, or `out` does not fit.
        DataError: an input is not finite, or nothing differs.
    """
    stored = OUTPUT_DTYPES[dtype]
    readers = Readers(models)
    linear = {job.name.removesuffix(".weight") for job in plan.jobs if is_linear(job)}
    work = _Work(readers, wanted, stored, linear)
    rows = [job for job in plan.jobs if job.kind == "merge" or not _of_base(job)]
    found: list[_Part] = []
    unplaced: list[str] = []
    made = Making("extract-lora", {**asdict(wanted), "dtype": dtype}, plan, models)
    try:
        with making(made, out, overwrite=overwrite, emit=emit) as folder, Spool(folder) as spool:
            for done, (job, part) in enumerate(_in_order(work, rows, threads), start=1):
                if part is None:
                    unplaced.append(job.name)
                    continue
                for name, shape, raw in part.tensors:
                    spool.add(name, stored, shape, raw)
                found.append(_without_bytes(part))
                emit(Event("progress", name=job.name, bytes_read=done, bytes_total=len(rows)))
            result = _result(found, len(plan.jobs), unplaced)
            _finish(plan, models, folder, spool, result, wanted, dtype)
    finally:
        readers.close()
    return result


def is_linear(job: Job) -> bool:
    """Return whether a row is the weight of a linear layer, which factors can stand for."""
    return (
        len(job.shape) == 2
        and min(job.shape) > 1
        and job.name.endswith(".weight")
        and role_of(job.name) != "embedding"
    )


@dataclass
class _Work:
    """Computes what one row gives."""

    readers: Readers
    wanted: Wanted
    stored: str
    linear: set[str]

    def part(self, job: Job) -> _Part | None:
        """Return what a row gives; None where it differs and has no place in an adapter."""
        import torch

        torch.set_num_threads(1)  # the same digits whatever the number of threads
        base, tuned = self._values(job)
        if np.array_equal(base, tuned):
            return _Part()
        module, _, leaf = job.name.rpartition(".")
        if is_linear(job):
            return self._factors(job, module, torch.from_numpy(tuned - base).reshape(job.shape))
        whole = self._bytes(torch.from_numpy(tuned))
        if leaf == "bias" and module in self.linear:
            key = f"{PREFIX}{module}.base_layer.bias"
            return _Part(bias=job.name, tensors=[(key, job.shape, whole)])
        if leaf in ("weight", "bias") and len(job.shape) <= 2:
            return _Part(saved=module, tensors=[(f"{PREFIX}{job.name}", job.shape, whole)])
        return None

    def _values(self, job: Job) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        size = math.prod(job.shape)
        values: list[NDArray[np.float32]] = []
        for slot in slots_of(job, self.readers):
            if slot.supply is None:
                raise DataError(f"`{job.name}` is not in both models", where=slot.read.source)
            raw = np.empty(size * _WIDTHS[slot.dtype], np.uint8)
            slot.supply.fill(0, size, raw)
            value = as_float32(raw, slot.dtype)
            if not np.isfinite(value).all():
                hint = "the input is broken: fetch or train it again"
                raise DataError("NaN or infinite entries", f"{slot.read.source}: {job.name}", hint)
            values.append(values[0] + value if slot.is_delta else value)  # of a patch
        return values[0], values[-1]

    def _factors(self, job: Job, module: str, delta: Any) -> _Part:
        from mergekit_lite.engine.torch_row import DTYPES

        b, a = (f.to(DTYPES[self.stored]) for f in factors(delta, self.wanted, job.name))
        norm = float(delta.double().norm())
        missed = float((delta - b.float() @ a.float()).double().norm())
        found = Module(module, a.shape[0], missed / norm, norm)
        key = f"{PREFIX}{module}.lora_{{}}.weight"
        pairs = [(key.format("A"), a), (key.format("B"), b)] if len(a) else []
        return _Part(found, tensors=[(k, tuple(f.shape), self._bytes(f)) for k, f in pairs])

    def _bytes(self, value: Any) -> NDArray[np.uint8]:
        import torch

        from mergekit_lite.engine.torch_row import DTYPES

        raw: NDArray[np.uint8] = (
            value.to(DTYPES[self.stored]).contiguous().view(torch.uint8).numpy().reshape(-1)
        )
        return raw


_WIDTHS = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


def _of_base(job: Job) -> bool:
    return all(read.source == "base" for read in job.reads)


def _in_order(
    work: _Work, rows: Sequence[Job], threads: int | None
) -> Iterator[tuple[Job, _Part | None]]:
    """Yield what rows give, in their order; a few are computed ahead."""
    count = threads or len(os.sched_getaffinity(0))
    waiting: deque[tuple[Job, Future[_Part | None]]] = deque()
    with ThreadPoolExecutor(count, thread_name_prefix="extract") as pool:
        try:
            for job in rows:
                waiting.append((job, pool.submit(work.part, job)))
                if len(waiting) > count:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _without_bytes(part: _Part) -> _Part:
    return _Part(part.module, part.saved, part.bias)


def _result(found: Sequence[_Part], rows: int, unplaced: Sequence[str]) -> Extraction:
    if unplaced:
        hint = "an adapter has no place for them; keep the model, or store its difference instead"
        raise RecipeError(
            [Problem(f"`{name}` differs from the base's", hint=hint) for name in unplaced]
        )
    modules = tuple(part.module for part in found if part.module is not None)
    saved = tuple(dict.fromkeys(part.saved for part in found if part.saved))
    biases = tuple(part.bias for part in found if part.bias)
    if not (modules or saved or biases):
        raise DataError(
            "the model is its base: no tensor differs", hint="check which models were given"
        )
    missed = sum((one.error * one.norm) ** 2 for one in modules)
    total = sum(one.norm**2 for one in modules)
    changed = len(modules) + len(biases) + sum(bool(part.saved) for part in found)
    error = math.sqrt(missed / total) if total else 0.0
    return Extraction(modules, saved, biases, rows - changed, error)


def _finish(
    plan: Plan,
    models: Mapping[str, Model],
    folder: Path,
    spool: Spool,
    result: Extraction,
    wanted: Wanted,
    dtype: str,
) -> None:
    """Write the weights, PEFT's configuration and the report."""
    spool.finish(folder / WEIGHT_FILE, {"format": "pt"})
    ranks = {one.name: one.rank for one in result.modules if one.rank}
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    base = models["base"]
    named = (base.config or {}).get("_name_or_path")
    config = lora_config(
        ranks,
        base.header.tensors,
        rank=usual,
        patterns={name: rank for name, rank in ranks.items() if rank != usual},
        saved=result.saved,
        base_model=named if isinstance(named, str) and named else plan.inputs["base"].reference,
        task_type=_task(base.config),
    )
    config["bias"] = "lora_only" if result.biases else "none"
    write_json(folder / "adapter_config.json", config)
    report = {
        "base": plan.inputs["base"].reference,
        "model": next(s.reference for name, s in plan.inputs.items() if name != "base"),
        "dtype": dtype,
        **asdict(wanted),
        **asdict(result),
    }
    write_json(folder / REPORT_FILE, report)


def _task(config: Mapping[str, Any] | None) -> str | None:
    """Return PEFT's name for what the base does, where its class tells."""
    known = {
        "ForCausalLM": "CAUSAL_LM",
        "ForSequenceClassification": "SEQ_CLS",
        "ForTokenClassification": "TOKEN_CLS",
        "ForQuestionAnswering": "QUESTION_ANS",
    }
    classes = (config or {}).get("architectures") or [""]
    return next((task for end, task in known.items() if str(classes[0]).endswith(end)), None)
