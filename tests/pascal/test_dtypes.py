"""The compute dtype follows the compute capability. Only the GPU is replaced."""

import contextlib

import pytest
import torch

from recipe.model.likelihood import autocast
from recipe.pascal.dtypes import compute_dtype


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((6, 0), torch.float16),  # P100
        ((6, 1), torch.float32),  # P40, P4, GTX 1080
        ((5, 2), torch.float32),  # M40
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),
        ((8, 6), torch.float16),
    ],
)
def test_fp16_only_where_its_arithmetic_is_fast(capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda")
    assert compute_dtype(device) == dtype
    assert isinstance(autocast(device), contextlib.nullcontext) == (dtype == torch.float32)


def test_a_cpu_computes_in_fp32():
    assert compute_dtype(torch.device("cpu")) == torch.float32
