"""What leaving experts out and merging them share: a routed model with fewer experts a layer."""
