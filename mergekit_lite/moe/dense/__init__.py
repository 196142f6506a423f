"""Makes one feed-forward layer of all experts of each routed layer."""
