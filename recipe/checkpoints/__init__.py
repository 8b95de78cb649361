"""Weights as files: Meta, Hugging Face and GGUF in; safetensors, Meta and GGUF out. Knows nothing of conversations."""
