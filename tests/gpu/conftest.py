"""What needs a card. Without one everything here is skipped, and with REQUIRE_GPU=1 that is a failure.

GPU_TESTS_DEVICE=cpu runs the tests of recipe/pascal on a CPU in fp32: their code is then known to work before a card
is rented. They need torch alone, of any version, so they also run on another card.
"""

import os
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from recipe.pascal.dtypes import compute_dtype

WEIGHTS = Path("weights/llama-7b")


def skip(reason: str) -> NoReturn:
    if os.environ.get("REQUIRE_GPU") == "1":
        pytest.fail(f"REQUIRE_GPU=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture
def device() -> torch.device:
    """The card, or the CPU where GPU_TESTS_DEVICE says so."""
    if os.environ.get("GPU_TESTS_DEVICE") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        skip("there is no CUDA device: this was not tried")
    return torch.device("cuda")


@pytest.fixture
def dtype(device: torch.device) -> torch.dtype:
    """fp16 as on the P100; fp32 on a CPU, where torch 2.0 has no fp16 matmul, and on a P40."""
    return compute_dtype(device)


@pytest.fixture
def p100() -> torch.device:
    """A card of compute capability 6.0."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (6, 0):
        skip("there is no P100: this was not tried")
    return torch.device("cuda")


@pytest.fixture
def weights_7b() -> Path:
    """Converted 7B weights."""
    if not (WEIGHTS / "manifest.json").is_file():
        skip(f"{WEIGHTS} is not there: convert a 7B first")
    return WEIGHTS
