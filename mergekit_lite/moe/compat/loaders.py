"""What loaders do with each family, whatever its config says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Norm = Literal["always", "never", "flag", "other", "none", "unknown"]
"""Whether the weights of the chosen experts are made to add up to 1: `flag` reads
`norm_topk_prob`, `other` computes something else, `none` cannot load the family, `unknown` was
neither run nor read."""

LORA_DONORS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "olmo2", "phi3", "granite")
LOADERS = ("transformers", "vllm", "llama.cpp")
VERSIONS: Mapping[str, str] = {
    "transformers": "5.23",
    "vllm": "0.33",
    "llama.cpp": "as in llama-cpp-python 0.3.36",
}


@dataclass(frozen=True)
class Known:
    """How three loaders weigh the chosen experts of a family.

    Attributes:
        norms: by loader.
        run: loaders in which it was executed; of the others the source was read.
        note: what else is to be said.
    """

    norms: tuple[Norm, Norm, Norm]
    run: tuple[str, ...] = ("transformers",)
    note: str = ""

    def norm(self, loader: str) -> Norm:
        return self.norms[LOADERS.index(loader)]


_BOTH = ("transformers", "llama.cpp")
_OWN_CODE = Known(
    ("flag", "unknown", "none"),
    note="Its routers are code beside the weights, which transformers runs with"
    " `trust_remote_code=True`; vLLM may, through its backend for transformers",
)

_ADAPTERS = Known(
    ("always", "unknown", "none"),
    note="Its adapters are routed by code beside the weights, which transformers runs with"
    " `trust_remote_code=True`; vLLM may, through its backend for transformers",
)

FAMILIES: Mapping[str, Known] = {
    "mixtral": Known(("always", "always", "always"), _BOTH),
    "qwen2_moe": Known(("flag", "flag", "never"), _BOTH),
    "qwen3_moe": Known(("flag", "flag", "always"), _BOTH),
    "olmoe": Known(("flag", "never", "never"), _BOTH),
    "flex_olmo": Known(
        ("flag", "flag", "none"), note="vLLM loads it through its Transformers backend"
    ),
    "deepseek": Known(("flag", "flag", "never"), (), "needs the model's own code in transformers"),
    "deepseek_v2": Known(("never", "flag", "flag"), _BOTH),
    "deepseek_v3": Known(("flag", "flag", "flag"), _BOTH),
    "glm4_moe": Known(("flag", "flag", "flag"), _BOTH),
    "dots1": Known(("flag", "none", "flag"), _BOTH, "vLLM dropped it after 0.23"),
    "granitemoe": Known(("always", "always", "always"), _BOTH),
    "granitemoeshared": Known(("always", "always", "always"), _BOTH),
    "phimoe": Known(("other", "other", "always"), ()),
    "ernie4_5_moe": Known(("always", "always", "always"), _BOTH),
    "hunyuan_v1_moe": Known(("always", "always", "always"), _BOTH),
    **{f"routed_{donor}": _OWN_CODE for donor in ("llama", "mistral", "qwen2", "qwen3")},
    **{f"lora_moe_{donor}": _ADAPTERS for donor in LORA_DONORS},
}
"""By `model_type`."""

SIGMOID = ("deepseek_v3", "glm4_moe", "dots1")
"""Families whose weights do not add up to 1 of themselves, not even those of all experts."""
UNGROUPED = ("dots1", "olmoe")
"""Families that llama.cpp loads only if there are as many heads of keys as of queries."""
LLAMA_CPP_EXPERTS = 1024
"""Most experts of a layer that llama.cpp takes."""
FUSED_IN_MEMORY_ONLY = (
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "deepseek_v2", "deepseek_v3",
    "glm4_moe", "dots1", "ernie4_5_moe", "hunyuan_v1_moe",
)  # fmt: skip
"""Families that store each expert by itself; transformers 5 fuses them in memory."""
READS_FUSED: Mapping[str, tuple[str, ...]] = {
    "vllm": ("qwen2_moe", "qwen3_moe"),
    "llama.cpp": ("qwen2_moe", "qwen3_moe"),
}
"""Which of these a loader reads in the fused form all the same."""
