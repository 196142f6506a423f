"""What each op costs an entry, through the engine's own path, beside the fused `ties` chain.

One matrix in bf16, a base and three experts, one worker, nothing written:

    python benchmarks/methods_cost.py --rows 4096 --json costs.json

A method's passes are how often it must see every input: once for a merge, once more for ranks,
sums or quartiles of the tensor or of its rows. CPU time of the worker's thread is measured, the
best of the rounds, so that other programs disturb it little.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llama_set import RELATIVE_CHANGE

from mergekit_lite.checkpoint import header_text
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.kinds import wanted_kernels
from mergekit_lite.engine.known import Known
from mergekit_lite.engine.memory import keep_for, tile_for
from mergekit_lite.engine.options import Options
from mergekit_lite.engine.program import compile_job
from mergekit_lite.engine.shard import Worker
from mergekit_lite.kernels.warm import compile_kernels
from mergekit_lite.plan.build import prepare
from mergekit_lite.recipe import load

WIDTH = 14336
NAME = "model.layers.0.mlp.down_proj.weight"
EXPERTS = ("a", "b", "c")
CHANGE = np.float32(0.02 * RELATIVE_CHANGE / 2**0.5)
"""Scale of a heavy-tailed change of two per cent of the norm of a base of scale 0.02."""
OF_EACH = dict(zip(EXPERTS, (0.2, 0.4, 0.6), strict=True))
Chain = list[dict[str, Any]]


@dataclass(frozen=True)
class Method:
    """One chain and how often it must see its inputs."""

    name: str
    chain: Chain
    passes: int
    experts: int = 3


@dataclass(frozen=True)
class Cost:
    """What one chain took: nanoseconds an entry of the output, and what that is a pass."""

    name: str
    path: str
    passes: int
    experts: int
    ns: float
    ratio: float


def _sum(op: str, **params: Any) -> Chain:
    return [{op: params}, {"task_arithmetic": {}}]


METHODS = (
    Method("ties", [{"ties": {}}], 2),
    Method("linear", [{"linear": {}}], 1),
    Method("task_arithmetic", [{"task_arithmetic": {}}], 1),
    Method("dare_linear", [{"dare_linear": {}}], 1),
    Method("dare_ties", [{"dare_ties": {}}], 2),
    Method("magmax", [{"magmax": {}}], 1),
    Method("ram", [{"ram": {}}], 1),
    Method("consensus", [{"consensus": {}}], 1),
    Method("consensus by expert", [{"consensus": {"mask_lambda": OF_EACH}}], 1),
    Method("consensus_ties", [{"consensus_ties": {}}], 2),
    Method("ties by deviation", [{"ties": {"trim": "std"}}], 2),
    Method("ties by share of the norm", [{"ties": {"trim": "norm"}}], 3),
    Method("nearswap", [{"nearswap": {"t": 0.0001}}], 1, 1),
    Method("slerp", [{"slerp": {}}], 2, 2),
    Method("nuslerp", [{"nuslerp": {}}], 2, 2),
    Method("multislerp", [{"multislerp": {}}], 2),
    Method("karcher", [{"karcher": {}}], 2),
    Method("model_stock", [{"model_stock": {}}], 2),
    Method("breadcrumbs by tensor", _sum("breadcrumbs", unit="tensor"), 2),
    Method("breadcrumbs by row", _sum("breadcrumbs"), 2),
    Method("magprune by row", _sum("magprune"), 2),
    Method("magprune by row and l1", _sum("magprune", rescale="l1"), 3),
    Method("nuslerp by row", [{"nuslerp": {"unit": "row"}}], 2, 2),
    Method("nuslerp by column", [{"nuslerp": {"unit": "column"}}], 2, 2),
    Method("model_stock by row", [{"model_stock": {"filter_wise": True}}], 2),
    Method("ramplus by tensor", [{"ramplus": {"scope": "tensor"}}], 2),
    Method("sce", [{"sce": {}}], 4),
    Method("arcee_fusion", [{"arcee_fusion": {}}], 3, 1),
)


class Discard:
    """Stands for a shard: takes what a worker writes and lets it go."""

    @property
    def writer(self) -> Discard:
        return self

    def write(self, part: Any, offset: int) -> None: ...

    def wrote(self, start: int, nbytes: int) -> None: ...

    def row_done(self, parts: Mapping[str, Any], bytes_read: int) -> bool:
        return True


def make_models(folder: Path, rows: int) -> None:
    """Write the base and the experts, with changes as `llama_set` makes them."""
    text, _, _ = header_text([(NAME, "BF16", (rows, WIDTH))], {"format": "pt"})
    for number, name in enumerate(("base", *EXPERTS)):
        shared, own = np.random.default_rng(0), np.random.default_rng(number)
        with open(folder / f"{name}.safetensors", "wb") as stream:
            stream.write(len(text.encode()).to_bytes(8, "little") + text.encode())
            for _ in range(rows):
                values = 0.02 * shared.standard_normal(WIDTH, np.float32)
                if name != "base":
                    values += CHANGE * own.standard_t(4, WIDTH).astype(np.float32)
                stream.write(bf16(values))


def bf16(values: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """Return values as bf16, rounded to nearest."""
    return ((values.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype("<u2").tobytes()


def seconds(folder: Path, method: Method, rounds: int) -> tuple[float, str]:
    """Return the best CPU time of a round, and which path the engine took."""
    recipe = {
        "base": str(folder / "base.safetensors"),
        "experts": {n: str(folder / f"{n}.safetensors") for n in EXPERTS[: method.experts]},
        "steps": method.chain,
    }
    plan, models = prepare(load(recipe))
    options = Options(threads=1)
    (job,) = plan.jobs
    fused = compile_job(job, plan.seed) is not None
    if fused:
        compile_kernels(wanted_kernels(plan, models))
    worker = Worker(
        plan,
        Readers(models),
        options,
        tile=tile_for(plan, options),
        keep=keep_for(plan, options),
        known=Known(),
        stop=threading.Event(),
    )
    shard: Any = Discard()
    times = []
    for _ in range(rounds + 1):  # the first one only fetches code and pages
        start = time.thread_time()
        worker.run(job, shard)
        times.append(time.thread_time() - start)
    return min(times[1:]), "fused" if fused else "torch"


def measure(folder: Path, rows: int, methods: Sequence[Method], rounds: int) -> Iterator[Cost]:
    """Yield what each method costs; the ratio is to one pass of `ties`, which comes first."""
    yardstick = 0.0
    for method in methods:
        took, path = seconds(folder, method, rounds)
        ns = 1e9 * took / (rows * WIDTH)
        yardstick = yardstick or ns / method.passes
        ratio = ns / method.passes / yardstick
        yield Cost(method.name, path, method.passes, method.experts, ns, ratio)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description="What each op costs an entry.")
    parser.add_argument("--rows", type=int, default=4096, help=f"rows of {WIDTH} entries")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="", help="comma-separated methods; ties is always first")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    wanted = set(options.only.split(",")) if options.only else {m.name for m in METHODS}
    chosen = [m for m in METHODS if m.name in wanted or m is METHODS[0]]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = []
    print(f"{'method':<26}{'path':<7}{'passes':>6}{'experts':>8}{'ns/entry':>10}{'/ ties':>8}")
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder), options.rows)
        for cost in measure(Path(folder), options.rows, chosen, options.rounds):
            found.append(asdict(cost))
            head = f"{cost.name:<26}{cost.path:<7}{cost.passes:>6}{cost.experts:>8}"
            print(f"{head}{cost.ns:>10.2f}{cost.ratio:>7.1f}x", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"rows": options.rows, "costs": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
