"""A frozen base with random weights, made on the device: everything of a real run but its quality."""

from typing import TYPE_CHECKING

import torch

from recipe.model.load import empty_model, place_tensor
from recipe.pascal.dtypes import compute_dtype

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

SPREAD = 0.02  # standard deviation, as LLaMA is initialized


def random_base(config: "LlamaConfig", precision: str, device: torch.device) -> "LlamaForCausalLM":
    """A frozen LlamaForCausalLM in eval mode on `device` with random weights, quantized tensor by tensor as real ones.

    Norms are ones, all other weights normal. At most one unquantized tensor is in memory at a time.
    """
    model = empty_model(config)
    dtype = torch.float32 if precision == "fp32" else compute_dtype(device)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in list(model.named_parameters()):
        if parameter.dim() == 1:
            tensor = torch.ones(parameter.shape, dtype=dtype, device=device)
        else:
            tensor = torch.empty(parameter.shape, dtype=dtype, device=device).normal_(0, SPREAD, generator=generator)
        place_tensor(model, name, tensor, precision, dtype, device)
    model.tie_weights()
    return model.to(device).requires_grad_(False).eval()
