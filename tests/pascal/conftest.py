"""What several tests of this package share."""

import pytest

from recipe.pascal import gemm
from tests.pascal import cublas


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> cublas.Library:
    """cuBLAS and GPU memory replaced; every argument still goes through C."""
    stand_in = cublas.Library()
    monkeypatch.setattr(gemm, "cublas_function", lambda: stand_in.function(gemm.SIGNATURE))
    monkeypatch.setattr(gemm, "cublas_handle", lambda device: cublas.HANDLE)
    return stand_in
