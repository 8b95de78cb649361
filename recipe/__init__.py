"""LoRA fine-tuning of Vicuna-7B on one 16 GB Tesla P100: from raw weights and conversations to a model that talks."""
