"""The rows of a mixture of adapters: the base's own, and stacked pairs and gates beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mergekit_lite.moe.lora.mixture import TASKS, Mixture, Module
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.frame import Frame, Target
from mergekit_lite.plan.inputs import View
from mergekit_lite.plan.layout import output_dtype
from mergekit_lite.plan.names import few
from mergekit_lite.plan.rows import Rows
from mergekit_lite.plan.types import GATE, Block, Job, Read, Step
from mergekit_lite.recipe.schema import BASE, Recipe

_COPIED = Step("passthrough", {"source": None, "scale": 1.0, "weights": [1.0]})
_NOTHING = Read("", "", zero=True)


@dataclass
class MixedRows:
    """Makes the rows of a mixture.

    Args:
        mixture: what is made.
        rows: makes the rows of all other tensors.
        recipe: what is wanted.
        found: the base and the experts.
        findings: where problems are noted.
    """

    mixture: Mixture
    rows: Rows
    recipe: Recipe
    found: Mapping[str, View]
    findings: Findings

    def jobs(self, frame: Frame) -> Iterator[Job]:
        """Yield every row of the output."""
        if self.mixture.tasks:
            shape = (len(self.mixture.experts), self.mixture.tasks)
            yield self._made(TASKS, shape, None, "F32")
        lost: list[str] = []
        for target in frame.targets:
            module = self.mixture.modules.get(target.name.removesuffix(".weight"))
            if module is not None and target.name.endswith(".weight"):
                where = self.recipe.at("moe", "target")
                job = self.rows.taken(target, BASE, where, "`moe`")
                if job is not None:
                    yield job
                    yield from self._beside(target, module)
                continue
            if self._is_lost(target):
                lost.append(target.name)
            job = self.rows.row(target)
            if job is not None:
                yield job
        self._tell(lost)

    def _is_lost(self, target: Target) -> bool:
        """Return whether adapters change a tensor that is not routed, and nothing merges it."""
        names = dict.fromkeys(expert.expert for expert in self.mixture.experts)
        if not any(self.found[name].covers(target.name) for name in names):
            return False
        decision = self.rows.rules.decide(target.name, target.layer, target.role, target.slice)
        plain = [step.op == "take" and step.params.get("source") == BASE for step in decision.steps]
        return decision.winner is None and decision.action == "steps" and all(plain)

    def _tell(self, lost: list[str]) -> None:
        if not lost:
            return
        self.findings.problem(
            f"adapters change tensors that no token is routed for: {few(lost)}",
            self.recipe.at("moe", "target"),
            "`steps` merges them, for example `steps: [{task_arithmetic: {normalize: true}}]`; a"
            " rule with `take: base` leaves them as they are",
        )

    def _beside(self, target: Target, module: Module) -> Iterator[Job]:
        name = target.name.removesuffix(".weight")
        dtype = output_dtype(target.info.dtype, self.recipe.output.dtype)
        count = len(self.mixture.experts)
        shapes = {
            "experts_a": (module.rank, module.inputs),
            "experts_b": (module.outputs, module.rank),
        }
        for part, shape in shapes.items():
            blocks = self._blocks(module, part, shape)
            read = Read(
                blocks[0].read.source,
                blocks[0].read.name,
                nbytes=sum(block.read.nbytes for block in blocks),
                blocks=blocks,
            )
            rule = f"{self.recipe.at('moe', 'target')} the experts' pairs"
            yield Job(
                f"{name}.{part}", dtype, (count, *shape), 0, 0, "merge", (read,),
                steps=(_COPIED,), layer=target.layer, rule=rule,
            )  # fmt: skip
        yield self._made(f"{name}.gate", (count, module.inputs), target.layer, dtype)

    def _blocks(self, module: Module, part: str, shape: tuple[int, int]) -> tuple[Block, ...]:
        found = []
        for expert, pair in zip(self.mixture.experts, module.pairs, strict=True):
            if pair is None:
                found.append(Block(_NOTHING, (0, shape[1]), (0, 0), shape))
                continue
            name = pair.a if part == "experts_a" else pair.b
            info = self.found[expert.expert].tensors[name]
            read = Read(expert.expert, name, nbytes=info.nbytes, made=info.is_made, held=info.held)
            scale = 1.0 if part == "experts_a" else pair.scale * expert.residual_scale
            stored = (info.shape[0], info.shape[1])
            found.append(Block(read, stored, (0, 0), shape, scale))
        return tuple(found)

    def _made(self, name: str, shape: tuple[int, ...], layer: int | None, dtype: str) -> Job:
        """Return the row of a tensor that is made before the rows run."""
        size = shape[0] * shape[1]
        read = Read(GATE, name, nbytes=4 * size)
        moved = dtype == "F32"
        return Job(
            name, dtype, shape, 0, 0, "copy" if moved else "merge", (read,),
            steps=() if moved else (_COPIED,), layer=layer,
            rule=f"{self.recipe.at('moe', 'gate')} made by the gate `{self.mixture.gate}`",
        )  # fmt: skip
