"""Reading and writing safetensors checkpoints by byte ranges."""

from mergekit_lite.checkpoint._types import (
    DTYPE_BYTES,
    FLOAT_DTYPES,
    Coded,
    Computed,
    Header,
    TensorInfo,
)
from mergekit_lite.checkpoint.adapter import Adapter, LoraFactors, Share
from mergekit_lite.checkpoint.coded import Reading, as_plain
from mergekit_lite.checkpoint.header import header_text, read_checkpoint, read_header_bytes
from mergekit_lite.checkpoint.lora import read_adapter
from mergekit_lite.checkpoint.names import layer_count, layer_of, role_matches, role_of
from mergekit_lite.checkpoint.reader import FileReader, Reader, aligned_buffer
from mergekit_lite.checkpoint.writer import ShardWriter

__all__ = [
    "DTYPE_BYTES",
    "FLOAT_DTYPES",
    "Adapter",
    "Coded",
    "Computed",
    "FileReader",
    "Header",
    "LoraFactors",
    "Reader",
    "Reading",
    "ShardWriter",
    "Share",
    "TensorInfo",
    "aligned_buffer",
    "as_plain",
    "header_text",
    "layer_count",
    "layer_of",
    "read_adapter",
    "read_checkpoint",
    "read_header_bytes",
    "role_matches",
    "role_of",
]
