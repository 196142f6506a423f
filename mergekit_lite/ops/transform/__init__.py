"""One file an op; see `mergekit_lite.ops`."""
