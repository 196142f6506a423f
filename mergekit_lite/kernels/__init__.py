"""The fused CPU loops: numba twins of the torch chain in `mergekit_lite.ops`."""
