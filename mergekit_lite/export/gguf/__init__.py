"""GGUF files, which llama.cpp runs, of the families that can be written without its own script."""
