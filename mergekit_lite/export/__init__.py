"""What goes around the weights: configuration, tokenizer, card, lock, report, index."""
