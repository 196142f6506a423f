"""Where models come from: local folders, single files, the zoo, and registered sources."""

from mergekit_lite.sources._types import Kind, Model, Source
from mergekit_lite.sources.file import stored_tasks
from mergekit_lite.sources.quantization import as_stored
from mergekit_lite.sources.resolve import resolve

__all__ = ["Kind", "Model", "Source", "as_stored", "resolve", "stored_tasks"]
