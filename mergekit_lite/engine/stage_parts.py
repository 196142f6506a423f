"""What experts inside stages gave to a merge, each tensor of a stage counted once.

A stage's tensor is computed as often as it is read: in several sweeps, and for several rows. It
belongs to the first row of the plan that reads it, so that a report depends neither on the order
in which rows are computed nor on an interruption.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mergekit_lite.engine.options import Contribution
from mergekit_lite.plan.types import GATE, Job, Plan, Read

Tensor = tuple[str, str]
"""A stage and the name of one of its tensors."""
Parts = Mapping[str, Contribution]


class StageParts:
    """What was seen of the experts inside stages while rows read their results.

    Args:
        plan: of the whole.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rows = {
            (stage, job.name): job
            for stage, within in plan.stages.items()
            if stage not in plan.written
            for job in within.jobs
        }
        self._seen: dict[Tensor, Parts] = {}
        self._owned: dict[str, list[Tensor]] = {}
        taken: set[Tensor] = set()
        for job in plan.jobs if self._rows else ():
            self._owned[job.name] = list(self._reached(plan, job, taken))

    def _reached(self, plan: Plan, job: Job, taken: set[Tensor]) -> Iterator[Tensor]:
        """Yield the tensors of stages that a row reads, and those that these read, once each."""
        for read in (*([job.base] if job.base else []), *job.reads):
            for source, name in _stored(read):
                stage = plan.inputs[source].stage if source in plan.inputs else ""
                found = (stage, name)
                if found not in self._rows or found in taken:
                    continue
                taken.add(found)
                yield found
                yield from self._reached(self._plan.stages[stage], self._rows[found], taken)

    def note(self, stage: str, name: str, parts: Parts) -> None:
        """Take down what experts gave to a stage's tensor, once all of it has been computed."""
        self._seen[stage, name] = parts

    def of_row(self, name: str) -> dict[str, Contribution]:
        """Return what belongs to a finished row, by `STAGE/EXPERT`."""
        total: dict[str, Contribution] = {}
        for stage, tensor in self._owned.get(name, ()):
            for expert, part in self._parts(stage, tensor).items():
                key = f"{stage}/{expert}"
                total[key] = total.get(key, Contribution()) + part
        return total

    def _parts(self, stage: str, tensor: str) -> Parts:
        job = self._rows[stage, tensor]
        if job.kind == "copy":
            sources = {source for source, _ in _stored(job.reads[0])} - {"base", GATE}
            return {source: Contribution(matched=1) for source in sorted(sources)}
        return self._seen.get((stage, tensor), {})


def _stored(read: Read) -> Iterator[tuple[str, str]]:
    """Yield the source and name of every stored tensor that a read brings in."""
    if read.gather is not None:
        for part in read.gather.parts:
            yield from _stored(part)
    elif read.blocks:
        for block in read.blocks:
            yield from _stored(block.read)
    elif read.pieces:
        yield from ((read.source, piece.name) for piece in read.pieces)
    elif not read.zero:
        yield read.source, read.name
