"""Tokenizer files read as data: which token has which id, chat templates, unions."""

from mergekit_lite.tokenizer.files import is_tokenizer_file
from mergekit_lite.tokenizer.read import Tokens, read_tokens, same_files

__all__ = ["Tokens", "is_tokenizer_file", "read_tokens", "same_files"]
