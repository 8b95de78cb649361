"""What several tests of this room share."""

import pytest

from recipe.pascal import gemm
from tests.pascal import cublas


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> cublas.Library:
    """cuBLAS and the card's memory replaced; every argument still goes through C."""
    stand_in = cublas.Library()
    monkeypatch.setattr(gemm, "_function", lambda: stand_in.function(gemm.SIGNATURE))
    monkeypatch.setattr(gemm, "_handle", lambda device: cublas.HANDLE)
    return stand_in
