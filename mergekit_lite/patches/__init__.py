"""Patches as files: made of a fine-tune and its base, and applied to it again."""
