"""What a model has on top of its layers: a vocabulary, labels of texts, or nothing."""

from __future__ import annotations

from typing import Any, Literal

Head = Literal["language", "labels", "none"]
_LANGUAGE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def head_of(config: Any) -> Head:
    """Return what head the architecture that a config names has.

    A config that names none is taken for a language model's. Heads that give something for each
    token or span (masked words, entities, answers) count as none: what is below them can be run.
    """
    named = (getattr(config, "architectures", None) or ["ForCausalLM"])[0]
    if named.endswith("ForSequenceClassification"):
        return "labels"
    return "language" if named.endswith(_LANGUAGE) else "none"


def from_config(config: Any, head: Head, dtype: Any) -> Any:
    """Build the model of a config with this head, in the evaluation mode of torch.

    Raises:
        ValueError: transformers has no such model.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    if head == "labels":
        return AutoModelForSequenceClassification.from_config(config, dtype=dtype).eval()
    if head == "language":
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    try:
        # What pools the first token is often untrained, and is not looked at here.
        return AutoModel.from_config(config, dtype=dtype, add_pooling_layer=False).eval()
    except TypeError:
        return AutoModel.from_config(config, dtype=dtype).eval()
