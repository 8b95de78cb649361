"""Fixtures that several rooms share. Everything real and tiny; only hardware is ever mocked."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ASSETS = Path(__file__).parents[2] / "shared" / "assets"


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real models and conversations beside the checkout; the test is skipped, and says so, where they are absent."""
    if not ASSETS.is_dir():
        pytest.skip("no real assets beside this checkout (../shared/assets): this comparison was not made")
    return ASSETS
