"""What a calibration will take, said before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergekit_lite.calibrate.collect import KINDS
from mergekit_lite.calibrate.skeleton import Skeleton
from mergekit_lite.calibrate.slopes import SLOPES
from mergekit_lite.calibrate.tokens import Batch, Samples
from mergekit_lite.errors import ResourceError

_WIDTH = {"torch.float32": 4, "torch.bfloat16": 2}


@dataclass(frozen=True)
class Estimate:
    """Bytes of memory, by what they are for.

    Attributes:
        hidden: hidden states of all batches, padding counted; on the way back their gradients too.
        weights: the largest layer, or embedding and head; twice, while they are converted.
        sums: statistics of one layer.
        work: what one batch needs on its way through a layer.
        disk: bytes of hidden states that wait on the disk for the way back.
    """

    hidden: int
    weights: int
    sums: int
    work: int
    disk: int = 0

    @property
    def memory(self) -> int:
        """All of it."""
        return self.hidden + self.weights + self.sums + self.work


def estimate(
    skeleton: Skeleton, samples: Samples, batches: Sequence[Batch], kinds: Sequence[str]
) -> Estimate:
    """Return what measuring these kinds of statistics takes in memory."""
    width = _WIDTH[str(skeleton.dtype)]
    entries = sum(batch.mask.numel() for batch in batches)
    largest = max(batch.mask.numel() for batch in batches)
    layer = max(skeleton.parameters(place.index) for place in skeleton.layers)
    config = skeleton.model.config.get_text_config()
    inner = max(getattr(config, "intermediate_size", 0) or 0, 4 * skeleton.width)
    sums = sum(
        KINDS[kind].held(skeleton, len(samples.samples), len(samples.domains))
        for kind in kinds
        if kind in KINDS
    )
    hidden = entries * skeleton.width * width
    work = largest * (2 * inner + 8 * skeleton.width) * width
    outside = skeleton.parameters_outside()
    back = any(kind in SLOPES for kind in kinds)
    if back:
        # A gradient and an fp64 sum for each weight; one text's activations, and its logits twice.
        sums = max(sums, 12 * max(layer, outside))
        longest = max(len(sample.ids) for sample in samples.samples)
        heads = getattr(config, "num_attention_heads", 1)
        kept = longest * (6 * inner + 16 * skeleton.width + 3 * heads * longest)
        work = max(work, 4 * max(kept, 4 * longest * skeleton.vocabulary))
    return Estimate(
        hidden=hidden * (2 if back else 1),
        weights=2 * max(4 * layer, 4 * outside),
        sums=sums,
        work=work,
        disk=hidden * (len(skeleton.layers) + 3) if back else 0,
    )


def require_memory(found: Estimate, limit: int | None) -> None:
    """Refuse what does not fit into the memory that is allowed.

    Raises:
        ResourceError: it does not fit; tells what takes how much.
    """
    if limit is not None and found.memory > limit:
        raise ResourceError(
            f"this needs about {found.memory:,} bytes of memory, {limit:,} are allowed:"
            f" {found.hidden:,} of them for hidden states, {found.sums:,} for sums",
            "--max-memory",
            "lower --max-tokens, collect fewer kinds at a time, or allow more memory",
        )
