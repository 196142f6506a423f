"""mergekit's rule without a forward pass: embeddings of prompts, the same for all layers."""

from __future__ import annotations

from mergekit_lite.moe.gates._measure import Topic, topics_of
from mergekit_lite.moe.gates._spec import GateRequest, Gates, gate


@gate(title="Embeddings of prompts", needs="prompts")
def cheap_embed(request: GateRequest) -> Gates:
    """Point each row where the embeddings of the words of the expert's prompts are.

    The sum over all tokens at norm 1, in every layer: mergekit's `cheap_embed`. No text is run.
    It is plausible in the first layers at most. Negative prompts count as in `hidden`.
    """
    import numpy as np

    positive = topics_of(request.experts, request.texts)
    negative = [
        Topic(index, "", tuple(expert.get("negative", ())))
        for index, expert in enumerate(request.experts)
    ]
    sums = [request.measured().embeddings(topics) for topics in (positive, negative)]
    unit, other = (
        total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-8) for total in sums
    )
    rows = unit - other
    rows = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8)).astype(np.float32)
    return Gates(dict.fromkeys(request.routers, rows))
