"""What there is to know about checkpoints: summaries of one, differences of two."""
