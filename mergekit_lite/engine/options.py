"""What a run may be told, and what it tells afterwards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mergekit_lite.errors import Problem, RecipeError

Device = Literal["cpu", "cuda", "auto"]


@dataclass(frozen=True)
class Options:
    """How a plan is executed; none of it changes a byte of the result.

    Attributes:
        threads: workers; None is one for each core this process may use.
        max_memory: cap in bytes on resident memory; None is no cap.
        device: where the arithmetic runs; `auto` takes a GPU when torch finds one.
        fresh: throw an unfinished run away instead of resuming it.
        overwrite: replace a non-empty output folder.
        allow_nonfinite: let NaN and infinity of an input or a result pass.
        executor: name of a registered executor.

    Raises:
        RecipeError: a value is of another type, or out of range.
    """

    threads: int | None = None
    max_memory: int | None = None
    device: Device = "cpu"
    fresh: bool = False
    overwrite: bool = False
    allow_nonfinite: bool = False
    executor: str = "local"

    def __post_init__(self) -> None:
        problems = []
        # What a command line has checked may come from a program or from a file just as well.
        for name, what in (("threads", "a number"), ("max_memory", "a number of bytes")):
            value: object = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                problems.append(_not(name, value, f"{what}, an int of at least 1, or None"))
        devices = get_args(Device)
        if self.device not in devices:
            listed = ", ".join(f"`{device}`" for device in devices)
            problems.append(_not("device", self.device, f"one of {listed}"))
        executor: object = self.executor
        if not isinstance(executor, str):
            problems.append(_not("executor", executor, "the name of a registered executor"))
        if problems:
            raise RecipeError(problems)

    @property
    def workers(self) -> int:
        """Number of worker threads."""
        return self.threads or len(os.sched_getaffinity(0))


def _not(name: str, value: object, wanted: str) -> Problem:
    return Problem(f"`{name}` is {value!r}", "options", f"give {wanted}")


@dataclass(frozen=True)
class ExpertReport:
    """What an expert gave to the merge.

    Attributes:
        matched: tensors of the output that it was read for.
        measured: of these, how many were compared with the base; rows that copy bytes or combine
            whole weights do not read the base.
        changed: of the measured ones, how many differ from the base in any entry; None where none
            was measured.
        delta_norm: root of the sum of squares of its delta over the measured ones, to 6 digits;
            None where none was measured.
    """

    matched: int = 0
    measured: int = 0
    changed: int | None = None
    delta_norm: float | None = None


@dataclass(frozen=True)
class Contribution:
    """An expert's part in some tensors: counts, and the sum of squares of its delta."""

    matched: int = 0
    measured: int = 0
    changed: int = 0
    squares: float = 0.0

    def __add__(self, other: Contribution) -> Contribution:
        return Contribution(
            self.matched + other.matched,
            self.measured + other.measured,
            self.changed + other.changed,
            self.squares + other.squares,
        )

    def report(self) -> ExpertReport:
        if not self.measured:
            return ExpertReport(self.matched)
        norm = float(f"{self.squares**0.5:.6g}")
        return ExpertReport(self.matched, self.measured, self.changed, norm)


@dataclass(frozen=True)
class ShardDone:
    """One finished output file.

    Attributes:
        shard: its number in the plan.
        file: its final name.
        nbytes: its size.
        sha256: of the whole file.
        inputs: what each expert gave to its tensors.
        bytes_read: bytes read for it.
    """

    shard: int
    file: str
    nbytes: int
    sha256: str
    inputs: Mapping[str, Contribution] = field(default_factory=dict)
    bytes_read: int = 0

    def to_data(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        inputs = {k: [v.matched, v.measured, v.changed, v.squares] for k, v in self.inputs.items()}
        return {**self.__dict__, "inputs": inputs}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> ShardDone:
        """Rebuild it from `to_data`."""
        inputs = {k: Contribution(*v) for k, v in data["inputs"].items()}
        return cls(**{**data, "inputs": inputs})


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        shards: output file -> (bytes, sha256).
        inputs: per expert, what it gave.
        seconds: wall time of the engine.
        bytes_read, bytes_written: of this run alone.
        resumed_shards: shards that an earlier, interrupted run had finished.
        warnings: what the run noticed.
        found: what ops have to say of the whole model: op -> plain data.
    """

    shards: Mapping[str, tuple[int, str]]
    inputs: Mapping[str, ExpertReport]
    seconds: float
    bytes_read: int
    bytes_written: int
    resumed_shards: int = 0
    warnings: tuple[str, ...] = ()
    found: Mapping[str, Any] = field(default_factory=dict)
