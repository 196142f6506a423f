"""What one row reads and keeps in memory, and how often it must see its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.ops import OpSpec
from mergekit_lite.ops._statistics import Order
from mergekit_lite.plan.fused import is_fused
from mergekit_lite.plan.layout import job_bytes, part_bytes
from mergekit_lite.plan.types import Job, Plan, Read, Step

PROCESS_BYTES = 112_000_000
"""Resident memory of the interpreter with numpy, llvmlite and compiled kernels.

The first run after an installation compiles them in two processes of 270 MB each, one after the
other where memory is capped.
"""
TORCH_BYTES = 250_000_000
"""What loading torch adds, which only rows beyond the fused kernels need.

A GPU's driver takes memory of its own, which differs from one to another and is not counted.
"""
TEXT_BYTES = 460_000_000
"""Resident memory of the interpreter once it has run a text with torch and transformers."""
TORCH_COPIES = 4
"""Copies of a tile that an op in torch makes on its way."""
CODING_COPIES = 40
"""Bytes for each entry that is being turned into a code, of all copies on the way."""
SHARE_BYTES = 7 * 8 << 16
"""Counts of bits of one input's magnitudes, and of their squares, for a share of the norm."""
_DERIVED = {"sce": 1, "arcee_fusion": 0}
"""Combines that rank values which they derive from all inputs -> for how many ranks they collect
some of them; quartiles are found by counts."""
TILE_ENTRIES = 1 << 18
"""Entries of a full tile; with less memory the engine halves it down to `LEAST_TILE`.

Smaller ones cost time in calls, larger ones in writes of a megabyte (docs/benchmarks.md).
"""
DEVICE_TILE_ENTRIES = 1 << 23
"""Entries of a full tile on a GPU, where launches and transfers have a fixed price."""
LEAST_TILE = 1 << 12
"""No tile is smaller: sums are blocked by this many entries."""
RANK_ROOM = 1 << 21
"""Magnitudes, with their indices, that a worker keeps for all exact ranks it looks for."""
LEAST_RANK_ROOM = 1 << 16
"""Those it keeps for one rank, however many there are; tensors up to this size are kept whole."""
RANK_SAMPLE = 1 << 19
"""Magnitudes that it samples of each input."""
KEPT_BYTES = 48 << 20
"""Inputs of a row of at most this size are read once, however often the row is swept."""
ROW_BYTES = 600
"""Resident memory of a plan for each read and each step of each row."""

RUN_BYTES = 250
"""That of a run of rows in a map between vocabularies."""


def bytes_once(job: Job) -> int:
    """Return the bytes of all inputs of a row."""
    if job.kind == "copy":
        return job.reads[0].nbytes
    reads = {(r.source, r.name): r.nbytes for r in job.reads if not r.zero}
    if job.base is not None:
        reads[job.base.source, job.base.name] = job.base.nbytes
    return sum(reads.values())


def inputs_of(job: Job) -> int:
    """Return for how many inputs a row's tiles need room."""
    reads = [*job.reads, *([job.base] if job.base else [])]
    # Codes and what they are looked up in take as much again as the numbers; so do a stage's.
    return len(reads) + sum(read.made for read in reads)


def made_in_memory(job: Job) -> int:
    """Return the memory that stays in use while inputs are made of codes or by stages."""
    return sum(read.held for read in (*job.reads, *([job.base] if job.base else [])))


def read_bytes_of(job: Job, specs: Mapping[str, OpSpec]) -> int:
    """Return the bytes that computing a row reads, every sweep counted."""
    return passes(job, specs) * bytes_once(job)


def made_bytes(job: Job, specs: Mapping[str, OpSpec]) -> int:
    """Return the memory that a stage's row takes while another row reads its result."""
    if job.kind == "copy":
        return 0
    tiles = 4 * TILE_ENTRIES * (inputs_of(job) + 2)
    result = job_bytes(job) if any(is_whole(specs[step.op], step, job) for step in job.steps) else 0
    kept = kept_bytes(job, specs)
    return tiles + result + kept + rank_bytes(job, specs) + whole_bytes(job, specs)


def whole_bytes(job: Job, specs: Mapping[str, OpSpec], device: str = "cpu") -> int:
    """Return the bytes that a row takes beside its tiles: whole tensors in fp32, factors, codes."""
    if job.kind == "copy":
        return 0
    factors = 2 * sum(r.nbytes for r in job.reads if r.lora and not r.lora.packed)
    if truncated := sum(1 for read in job.reads if read.lora and read.lora.diagonal):
        factors += TORCH_BYTES + 16 * prod(job.shape) * truncated  # the matrix and its SVD
    factors += made_in_memory(job) + _column_bytes(job, specs)
    entries, inputs = prod(job.shape), len(job.reads)
    if not any(is_whole(specs[step.op], step, job, device) for step in job.steps):
        # Statistics are held whole, whatever the tile.
        asked = [step for step in job.steps if specs[step.op].calibration]
        held = sum(specs[s.op].workspace_bytes(s.params, job.shape, inputs) for s in asked)
        return factors + (TORCH_BYTES + held if held else 0)
    # As stored, in fp32 with the base, the result, and what becomes of it on the way to its bytes.
    stored = bytes_once(job) + 4 * entries * sum(1 for read in job.reads if read.lora)
    work = max(specs[s.op].workspace_bytes(s.params, job.shape, inputs) for s in job.steps)
    return TORCH_BYTES + factors + stored + 4 * entries * (inputs + 4) + work


def tile_entries(device: str = "cpu") -> int:
    """Return the entries of a full tile."""
    return TILE_ENTRIES if device == "cpu" else DEVICE_TILE_ENTRIES


def torch_bytes(plan: Plan, device: str = "cpu") -> int:
    """Return what loading torch takes, where a row needs it, of the plan or of its stages."""
    rows = [(job, device) for job in plan.jobs]
    # What is computed while it is read is computed on the CPU.
    read = (stage for name, stage in plan.stages.items() if name not in plan.written)
    rows += [(job, "cpu") for stage in read for job in stage.jobs]
    needed = any(job.kind == "merge" and not is_fused(job, device) for job, device in rows)
    if runs_texts(plan):
        return TEXT_BYTES - PROCESS_BYTES
    return TORCH_BYTES if needed else 0


def runs_texts(plan: Plan) -> bool:
    """Return whether texts are run before the rows, which leaves torch and more in memory."""
    if not plan.moe.keys() & {"gate", "routers"}:
        return False
    from mergekit_lite.moe.gate_cost import gate_cost

    return gate_cost(plan).memory > 0


def rank_bytes(job: Job, specs: Mapping[str, OpSpec]) -> int:
    """Return what one worker keeps while it looks for the k-th largest magnitudes of a row."""
    size = prod(job.shape)
    ranks = max(
        (
            len(needs.ranks(step.params, size))
            for step in job.steps
            for needs in specs[step.op].statistics
            if isinstance(needs, Order) and not needs.of_model(step.params)
        ),
        default=0,
    )
    derived = sum(_DERIVED.get(step.op, 0) for step in job.steps)
    if not ranks and not derived:
        return 0
    shares = sum(step.op == "norm_share" for step in job.steps)
    slots = len(job.reads) * ranks + derived
    kept = slots * (rank_room(size, slots) + 8)
    sampled = min(size, RANK_SAMPLE) * (len(job.reads) + 2)
    values = 2 * min(size, TILE_ENTRIES) if derived else 0
    return 12 * kept + 4 * (sampled + values) + shares * SHARE_BYTES


def rank_room(size: int, slots: int) -> int:
    """Return how many magnitudes are kept for each of `slots` ranks of a tensor's deltas."""
    return min(size, max(LEAST_RANK_ROOM, RANK_ROOM // slots))


def _column_bytes(job: Job, specs: Mapping[str, OpSpec]) -> int:
    """Return what inner products and factors of a row's columns take."""
    if not any(_is_by_column(specs[step.op], step) for step in job.steps):
        return 0
    return 40 * len(job.reads) ** 2 * prod(job.shape[1:])


def _is_by_column(spec: OpSpec, step: Step) -> bool:
    return spec.blend_each is not None and spec.reach_for(step.params) == "tensor"


def is_whole(spec: OpSpec, step: Step, job: Job, device: str = "cpu") -> bool:
    """Return whether a step must have whole tensors."""
    tiled = spec.reach_for(step.params) in ("element", "row")
    return not tiled and not is_fused(job, device)  # the kernels work tile by tile


def is_swept(spec: OpSpec, step: Step, size: int) -> bool:
    """Return whether a step needs a sweep over the tensor before its first tile."""
    own = spec.name in _DERIVED or _is_by_column(spec, step)
    return own or any(
        needs.asked(step.params, size) and not needs.of_model(step.params)
        for needs in spec.statistics
    )


def passes(job: Job, specs: Mapping[str, OpSpec]) -> int:
    """Return how often the inputs of a row are read."""
    once = 1 if kept_bytes(job, specs) or not _is_row_swept(job, specs) else 2
    return once * (2 if is_computed_twice(job, specs) else 1)


def is_computed_twice(job: Job, specs: Mapping[str, OpSpec]) -> bool:
    """Return whether the first code of a row waits for its last entry."""
    if job.coding is None or not job.coding.codes.whole or prod(job.shape) <= TILE_ENTRIES:
        return False
    return not any(is_whole(specs[step.op], step, job) for step in job.steps)


def coding_bytes(job: Job) -> int:
    """Return the memory that a worker takes to turn a row's entries into codes."""
    if job.coding is None:
        return 0
    rows, columns = job.shape
    together = min(job.coding.codes.block[0] or 1, rows) * columns
    scales = sum(part_bytes(part) for part in job.coding.parts[1:])
    return 6 * together + 4 * TILE_ENTRIES + CODING_COPIES * max(TILE_ENTRIES, columns) + scales


def _is_row_swept(job: Job, specs: Mapping[str, OpSpec]) -> bool:
    size = prod(job.shape)
    return any(is_swept(specs[step.op], step, size) for step in job.steps)


def kept_bytes(job: Job, specs: Mapping[str, OpSpec]) -> int:
    """Return the bytes of inputs that are kept between the sweeps of a row."""
    if job.kind == "copy" or not _is_row_swept(job, specs):
        return 0
    entries = prod(job.shape)
    reads = [*job.reads, *([job.base] if job.base else [])]
    total = sum(_held(read, entries) for read in reads if not read.zero)
    return total if total <= KEPT_BYTES else 0


def mark_bytes(job: Job, specs: Mapping[str, OpSpec]) -> int:
    """Return what marks of the entries that drops by rank keep take, a bit each."""
    size, width = prod(job.shape), job.shape[-1] if job.shape else 1
    drops = [
        step for step in job.steps if step.op == "magprune" and is_swept(specs[step.op], step, size)
    ]
    each = -(-width // 8) * (size // max(width, 1))
    return min(len(drops) * each, KEPT_BYTES - kept_bytes(job, specs))


def _held(read: Read, entries: int) -> int:
    """Return the bytes that an input takes in memory as a whole."""
    if read.gather is not None:
        return entries * DTYPE_BYTES[read.gather.dtype]
    return 4 * entries if read.lora or read.made else read.nbytes
