"""Which operations of a run torch cannot make deterministic: torch says so in warnings, which are collected here."""

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch

# "index_add_cuda_ does not have a deterministic implementation, but ...", "Memory Efficient attention is a
# non-deterministic algorithm. ...", "... this operation is not deterministic because it uses CuBLAS ..."
NAMED = re.compile(r"^(.{1,80}?) (?:does not have a deterministic implementation|is a non-deterministic algorithm)")
CUBLAS = re.compile(r"not deterministic because\s+it uses CuBLAS")


@contextlib.contextmanager
def deterministic(enabled: bool) -> Iterator[set[str]]:
    """Use torch's deterministic algorithms while the block runs; the set gets the operations that have none.

    enabled: on a GPU. On a CPU every operation of a run is deterministic for a given number of threads, which the
    tests hold, and nothing is changed.
    """
    found: set[str] = set()
    if not enabled:
        yield found
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first cuBLAS handle is made
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=f"(?s).*({NAMED.pattern[1:]}|{CUBLAS.pattern})")
        show = warnings.showwarning

        def collect(message: Any, *args: Any, **options: Any) -> None:
            name = _name(str(message))
            if name:
                found.add(name)
            else:
                show(message, *args, **options)

        warnings.showwarning = collect
        always = torch.is_warn_always_enabled()
        torch.set_warn_always(True)  # else the second run of a process would seem to have no such operation
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield found
        finally:
            torch.use_deterministic_algorithms(False)
            torch.set_warn_always(always)


def _name(message: str) -> str:
    if CUBLAS.search(message):
        return "cuBLAS"
    named = NAMED.search(message)
    return named[1] if named else ""
