"""The dtype that a device computes in. Needs torch alone."""

import torch

from recipe.pascal.constants import computes_in_fp16


def compute_dtype(device: torch.device) -> torch.dtype:
    """fp16 on a GPU with fast fp16 arithmetic (Pascal has no bf16); fp32 on others, such as a P40, and on a CPU.

    torch 2.0 has no fp16 matmul for a CPU.
    """
    if device.type == "cuda" and computes_in_fp16(torch.cuda.get_device_capability(device)):
        return torch.float16
    return torch.float32
