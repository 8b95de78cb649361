"""Run a stage on the stand-in for a P100 (driver.c): `python tests/cuda/stage.py DRIVER recipe.rehearse --config ...`.

Its kernels compute nothing, so what Python reads of a tensor to decide something is answered here instead: whether a
number is finite, and which tokens of a pack are trained.
"""

import ctypes
import importlib
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def main() -> int:
    from recipe.core.cli import entry
    from recipe.model import likelihood, stream
    from recipe.pascal import gemm

    driver, stage, *argv = sys.argv[1:]
    isfinite = torch.isfinite
    torch.isfinite = lambda tensor: torch.tensor(True) if tensor.is_cuda else isfinite(tensor)
    likelihood.targets_of = stream.targets_of = targets_of
    function = gemm.SIGNATURE(("cublasGemmStridedBatchedEx", ctypes.CDLL(driver)))
    gemm.cublas_function = lambda: function  # the library that is mapped is the real one
    return entry(lambda: importlib.import_module(stage).main(argv))


def targets_of(batch, device):
    """As `likelihood.targets_of`, but chosen on the CPU: the stand-in copies memory, and cannot compare numbers."""
    from recipe.model.likelihood import IGNORED

    labels = batch["labels"].cpu()[0, 1:]
    keep = (labels != IGNORED).nonzero().squeeze(1)
    return keep.to(device), labels[keep].to(device)


if __name__ == "__main__":
    sys.exit(main())
