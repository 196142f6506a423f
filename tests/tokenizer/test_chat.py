"""Chat templates by name, as transformers renders them."""

from __future__ import annotations

from typing import Any

import pytest

from mergekit_lite.tokenizer.chat import NAMED

Turns = list[dict[str, str]]
SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = {"role": "user", "content": "Hello, how are you?"}
FINE = {"role": "assistant", "content": "Fine, and you?"}
GREAT = {"role": "user", "content": "I'm doing great!"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")


ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes"
    " the request."
)


@pytest.mark.parametrize(
    ("name", "turns", "prompt", "text"),
    [
        (
            "chatml", [SYSTEM, HELLO, FINE, GREAT], True,
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\nHello, how are you?<|im_end|>\n"
            "<|im_start|>assistant\nFine, and you?<|im_end|>\n"
            "<|im_start|>user\nI'm doing great!<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "chatml", [HELLO, FINE], False,
            "<|im_start|>user\nHello, how are you?<|im_end|>\n"
            "<|im_start|>assistant\nFine, and you?<|im_end|>\n",
        ),
        (
            "llama3", [SYSTEM, HELLO, FINE, GREAT], True,
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHello, how are you?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nFine, and you?<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nI'm doing great!<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "llama3", [{"role": "user", "content": " Hello\n"}], False,
            "<s><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>",
        ),
        (
            "mistral", [HELLO, FINE, GREAT], True,
            "<s> [INST] Hello, how are you? [/INST] Fine, and you?</s>"
            " [INST] I'm doing great! [/INST]",
        ),
        (
            "mistral", [SYSTEM, HELLO, FINE, GREAT], False,
            "<s> [INST] Be brief.\n\nHello, how are you? [/INST] Fine, and you?</s>"
            " [INST] I'm doing great! [/INST]",
        ),
        (
            "exaone", [SYSTEM, HELLO, FINE, GREAT], True,
            "[|system|]Be brief.[|endofturn|]\n[|user|]Hello, how are you?\n"
            "[|assistant|]Fine, and you?[|endofturn|]\n[|user|]I'm doing great!\n[|assistant|]",
        ),
        (
            "exaone", [HELLO, FINE], False,
            "[|system|][|endofturn|]\n[|user|]Hello, how are you?\n"
            "[|assistant|]Fine, and you?[|endofturn|]\n",
        ),
        (
            "alpaca", [HELLO], True,
            f"{ALPACA}\n\n### Instruction:\nHello, how are you?\n\n### Response:\n",
        ),
        (
            "alpaca", [SYSTEM, HELLO, FINE, GREAT], False,
            "Be brief.\n\n### Instruction:\nHello, how are you?\n\n"
            "### Response:\nFine, and you?</s>\n\n### Instruction:\nI'm doing great!",
        ),
    ],
)  # fmt: skip
def test_a_conversation(tokenizer: Any, name: str, turns: Turns, prompt: bool, text: str) -> None:
    rendered = tokenizer.apply_chat_template(
        turns, chat_template=NAMED[name].text, tokenize=False, add_generation_prompt=prompt
    )
    assert rendered == text
    assert all(token in text for token in NAMED[name].tokens)


@pytest.mark.parametrize("name", ["alpaca", "mistral"])
def test_formats_without_tools_say_so(tokenizer: Any, name: str) -> None:
    turns = [HELLO, {"role": "tool", "content": "3"}]
    with pytest.raises(Exception, match="knows no turns of tool"):
        tokenizer.apply_chat_template(turns, chat_template=NAMED[name].text, tokenize=False)
