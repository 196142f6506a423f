"""What running texts for gates costs, from a plan alone: no torch is loaded and no weight read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.moe.carve.cost import graph_bytes, working_bytes
from mergekit_lite.moe.gates import registry
from mergekit_lite.moe.gates._scale import SAMPLE
from mergekit_lite.moe.refit import cost as refit
from mergekit_lite.ops import registry as ops
from mergekit_lite.plan.row_memory import TEXT_BYTES, TORCH_BYTES, made_bytes
from mergekit_lite.plan.types import Job, Plan

BATCH = 2048
"""Most entries of a batch of texts, padding counted, but for a longer single text."""
_PADDED = 1.25
"""Entries for each token: texts side by side are of about one length."""
_CHUNK = 1024


@dataclass(frozen=True)
class GateCost:
    """What making the gates of a plan costs beside its rows.

    Attributes:
        memory: bytes of resident memory at most, the process with torch and transformers counted;
            0 where no texts are run.
        text: what is done, in words.
    """

    memory: int = 0
    text: str = ""


def gate_cost(plan: Plan) -> GateCost:
    """Return what making the gates of a plan costs."""
    if "routers" in plan.moe:
        return GateCost(refit.memory(plan), refit.text(plan))
    if "gate" not in plan.moe:
        return GateCost()
    return _Texts(plan).cost()


class _Texts:
    """The texts that a plan runs, and what they run through."""

    def __init__(self, plan: Plan) -> None:
        self.plan, moe = plan, plan.moe
        self.method = str(moe["gate"]["method"])
        spec = registry().get(self.method)
        self.carve: Mapping[str, Any] | None = moe.get("carve")
        self.params: dict[str, Any] = dict(moe["gate"]["params"])
        if spec is not None:
            defaults = {name: own.default for name, own in spec.parameters.items()}
            self.params = {**defaults, **self.params}
        self.needs = spec.needs if spec is not None and self.carve is None else "nothing"
        self.alone = spec is not None and spec.alone
        self.hidden = int(moe["hidden"])
        self.width = int(moe["expert_width"]) * int(moe.get("split", 1))
        if self.carve is not None:
            self.width, self.params = int(self.carve["width"]), dict(self.carve)
        self.routed = _routed_roots(moe)
        self.topics = len(moe["experts"]) if self.carve is None else 1

    def cost(self) -> GateCost:
        files = self.carve is not None and self.carve["data"] is not None
        if self.params.get("embeddings") is not None or not (files or self.needs != "nothing"):
            return GateCost()
        if self.method == "cheap_embed":
            return GateCost(TEXT_BYTES + 16 * self._outside(), "the base's embeddings are read")
        pass_ = int(_PADDED * 4 * self._tokens() * self.hidden) + self._work() + self._made()
        memory = TEXT_BYTES + pass_ + self._weights() + self._sums()
        return GateCost(memory, self._sentence())

    def _sentence(self) -> str:
        most = f"at most {self._tokens():,} tokens"
        through = "the base"
        if self.alone or self.params.get("through") == "expert":
            through = "the expert that they are for"
        passes = [f"texts ({most}) run once through {through}"]
        if self.carve is not None and self.carve["method"] == "gradient":
            passes.append("their loss is followed back, which takes two passes more and gradients")
        if self.params.get("labels") == "perplexity":
            passes.append(f"once more through each of {self.topics} experts to be labelled")
        if self.method == "phatgoose":
            rows = self.topics * len(self.plan.moe["layers"])
            passes.append(f"{rows} rows are trained for {self.params['steps']} steps each")
        return f"`{'carve' if self.carve else self.method}`: {'; '.join(passes)}"

    def _tokens(self) -> int:
        """Return an upper bound of tokens: no token is less than a byte, but for those at ends."""
        if self.carve is not None:
            return min(int(self.carve["tokens"]), _size(self.plan, self.carve["data"]))
        most = int(self.params.get("tokens") or 1 << 60)
        total = 0
        for expert in self.plan.moe["experts"]:
            lines = [*expert.get("prompts", ()), *expert.get("negative", ())]
            size = sum(len(line.encode()) + 2 for line in lines)
            size += _size(self.plan, expert["data"]) if expert.get("data") else 0
            total += min(most, size)
        return total

    def _outside(self) -> int:
        return sum(prod(job.shape) for job in self.plan.jobs if job.layer is None)

    def _weights(self) -> int:
        """Return the largest part of the model in memory: stored, in fp32, and as it is used."""
        ffn = 3 * self.hidden * self.width
        layers: dict[int, int] = {}
        for job in self._dense_rows():
            if job.layer is not None:
                layers[job.layer] = layers.get(job.layer, 0) + prod(job.shape)
        stored = max((DTYPE_BYTES[job.dtype] for job in self._dense_rows()), default=4)
        layer = max(layers.values(), default=0) + ffn
        side_by_side = self.params.get("through") == "expert" or self.method == "hidden"
        # Passes begin one after the other, and each then keeps the layer that it is in.
        waiting = (self.topics - 1) * layer if side_by_side else 0
        beside = 2 * 4 * ffn if self.alone or self.carve is not None else 0
        return int((8 + stored) * (waiting + max(layer, self._outside())) + beside)

    def _sums(self) -> int:
        square, d = self.hidden * self.hidden, self.hidden
        if self.alone or self.carve is not None:
            tokens, beside = self._tokens(), 16 * _CHUNK * self.width
            if self.carve is not None:
                beside = working_bytes(self.carve, tokens=tokens, hidden=d)
            # Inputs in two precisions, and what comes of them.
            return 24 * tokens * d + beside
        if self.needs != "texts" or self.method == "domain_embed":
            return 0
        held = 28 * self.topics * square + 40 * square
        held += 24 * SAMPLE * d if self.params.get("confidence") is not None else 0
        return held + (48 * self.width * d if self.method == "arrow" else 0)

    def _work(self) -> int:
        """Return what one batch needs in a layer, or one text at the head."""
        length = int(self.params.get("length") or 512)
        inner = max(self.width, 4 * self.hidden)
        layer = max(BATCH, length) * (2 * inner + 8 * self.hidden) * 4
        vocabulary = max((job.shape[0] for job in self.plan.jobs if job.layer is None), default=0)
        if self.carve is not None:
            return graph_bytes(self.carve, layer=layer, length=length, vocabulary=vocabulary)
        if self.params.get("labels") != "perplexity" and self.method != "domain_embed":
            return layer
        return max(layer, 16 * length * vocabulary)

    def _made(self) -> int:
        """Return what the largest row takes that is merged while texts pass it."""
        specs = ops()
        merged = [job for job in self._dense_rows() if job.kind == "merge"]
        most = max((made_bytes(job, specs) for job in merged), default=0)
        return max(most - TORCH_BYTES, min(most, TORCH_BYTES))

    def _dense_rows(self) -> list[Job]:
        return [job for job in self.plan.jobs if not job.name.startswith(self.routed)]


def _routed_roots(moe: Mapping[str, Any]) -> tuple[str, ...]:
    """Return how the names of routed layers' own tensors begin: of routers and experts."""
    roots = {str(name).rpartition(".layers.")[0] for name, *_ in moe["rows"]}
    modules = ("mlp", "block_sparse_moe", "shared_mlp")
    return tuple(
        f"{root}.layers.{layer}.{module}."
        for root in roots
        for layer in (*moe["layers"], *moe.get("identical", ()))
        for module in modules
    )


def _size(plan: Plan, file: str) -> int:
    path = Path(plan.folder) / file
    return path.stat().st_size if path.is_file() else 0
