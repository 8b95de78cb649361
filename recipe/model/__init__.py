"""The model: a frozen base, its LoRA adapter, likelihood and generation."""

import logging

import torch

if not torch.cuda.is_available():
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of the missing GPU when imported
