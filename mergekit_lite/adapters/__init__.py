"""Adapters as files: taken out of a fine-tune, folded into a base, cut down, split off."""
