"""Reading and writing safetensors checkpoints by byte ranges."""

from mergekit_lite.checkpoint._types import DTYPE_BYTES, FLOAT_DTYPES, Header, TensorInfo

__all__ = ["DTYPE_BYTES", "FLOAT_DTYPES", "Header", "TensorInfo"]
