"""Chat templates that a recipe can name, written from the published description of each format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_CHATML = (
    "{% for turn in messages %}"
    "{{ '<|im_start|>' ~ turn.role ~ '\\n' ~ turn.content ~ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}"
    "{% for turn in messages %}"
    "{{ '<|start_header_id|>' ~ turn.role ~ '<|end_header_id|>\\n\\n' }}"
    "{{ (turn.content | trim) ~ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{% endif %}"
)
_UNKNOWN_ROLE = "{{ raise_exception('this chat template knows no turns of ' ~ turn.role) }}"
# The first version of the format: later ones have fewer spaces, and come with their models.
_MISTRAL = (
    "{{ bos_token }}"
    "{% set before = namespace(text='') %}"
    "{% for turn in messages %}"
    "{% if turn.role == 'system' %}{% set before.text = turn.content ~ '\\n\\n' %}"
    "{% elif turn.role == 'user' %}"
    "{{ ' [INST] ' ~ before.text ~ turn.content ~ ' [/INST]' }}{% set before.text = '' %}"
    "{% elif turn.role == 'assistant' %}{{ ' ' ~ turn.content ~ eos_token }}"
    "{% else %}" + _UNKNOWN_ROLE + "{% endif %}"
    "{% endfor %}"
)
_EXAONE = (
    "{% for turn in messages %}"
    "{% if loop.first and turn.role != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
    "{{ '[|' ~ turn.role ~ '|]' ~ turn.content }}"
    "{{ '\\n' if turn.role == 'user' else '[|endofturn|]\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
)
_ALPACA = (
    "{% for turn in messages %}"
    "{% if not loop.first %}{{ '\\n\\n' }}"
    "{% elif turn.role != 'system' %}"
    "{{ 'Below is an instruction that describes a task. Write a response that appropriately"
    " completes the request.\\n\\n' }}"
    "{% endif %}"
    "{% if turn.role == 'system' %}{{ turn.content }}"
    "{% elif turn.role == 'user' %}{{ '### Instruction:\\n' ~ turn.content }}"
    "{% elif turn.role == 'assistant' %}{{ '### Response:\\n' ~ turn.content ~ eos_token }}"
    "{% else %}" + _UNKNOWN_ROLE + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class ChatTemplate:
    """A template that goes by a name.

    Attributes:
        text: the template, in Jinja as transformers renders it.
        tokens: what it writes that a tokenizer must have as tokens of their own.
    """

    text: str
    tokens: tuple[str, ...] = ()


NAMED: Mapping[str, ChatTemplate] = MappingProxyType(
    {
        "alpaca": ChatTemplate(_ALPACA),
        "chatml": ChatTemplate(_CHATML, ("<|im_start|>", "<|im_end|>")),
        "exaone": ChatTemplate(_EXAONE, ("[|endofturn|]",)),
        "llama3": ChatTemplate(_LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
        "mistral": ChatTemplate(_MISTRAL),
    }
)
"""By name; an input of a recipe that is called the same comes first."""
