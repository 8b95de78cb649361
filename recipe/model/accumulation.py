"""Choose fp16 or fp32 accumulation per layer shape: benchmarked once on the run's GPU, stored, reused on resume."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipe.core.errors import RecipeError
from recipe.core.files import atomic_file
from recipe.core.text import say, snippet
from recipe.pascal import constants, probe
from recipe.pascal.dtypes import compute_dtype

Shapes = set[tuple[int, int]]


@dataclass(frozen=True)
class Choice:
    """Layers of these (in, out) accumulate in fp16, in chunks of `chunk` along K; all others in fp32."""

    shapes: Shapes
    chunk: int


def choose(path: Path, shapes: Shapes, tokens: int, device: torch.device) -> Choice:
    """The choice stored in `path`, or one made by a benchmark of every (in, out) in `shapes` with `tokens` rows.

    None of them on a GPU that computes in fp32. Raises RecipeError if `path` cannot be read or is about other shapes.
    """
    if device.type == "cuda" and compute_dtype(device) == torch.float32:
        say("this GPU computes in fp32, as its fp16 arithmetic is slow: no layer accumulates in fp16")
        return Choice(set(), constants.SPLIT_K)
    if path.is_file():
        say(f"using the accumulation dtypes stored in {path}")
    else:
        decision = benchmark(shapes, tokens, device)
        with atomic_file(path) as file:
            json.dump(decision, file, indent=1)
    return read(path, shapes)


def benchmark(shapes: Shapes, tokens: int, device: torch.device) -> dict[str, Any]:
    """The content of the file: chunk, tokens and one row per shape. fp16 wins if it is faster and within tolerance."""
    try:
        results = probe.benchmark_gemm(device, shapes, tokens)
    except RuntimeError as error:
        reason = snippet(str(error).partition("\n")[0])
        say(f"fp16 accumulation does not run on {device}, using fp32: {reason}")
        rows: list[dict[str, Any]] = [{"fan_in": a, "fan_out": b, "fp16": False} for a, b in sorted(shapes)]
    else:
        for result in results:
            say(f"{result}: using {'fp16' if result.fp16_wins else 'fp32'}")
        rows = [dataclasses.asdict(result) | {"fp16": result.fp16_wins} for result in results]
    torch.cuda.empty_cache()  # no training step uses blocks of these sizes
    return {"chunk": constants.SPLIT_K, "tokens": tokens, "layers": rows}


def read(path: Path, shapes: Shapes) -> Choice:
    """The choice stored in `path`. Raises RecipeError if it is not one, or not about exactly these shapes."""
    try:
        decision = json.loads(path.read_text(encoding="utf-8"))
        stored = {(row["fan_in"], row["fan_out"]): row["fp16"] is True for row in decision["layers"]}
        chunk = int(decision["chunk"])
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{path} does not hold accumulation dtypes ({error!r}): delete it to benchmark the GPU again"
        ) from None
    if stored.keys() != shapes or chunk < 1:
        raise RecipeError(
            f"{path} has chunk {chunk} for layers {sorted(stored)}, expected {sorted(shapes)}: "
            "delete it to benchmark the GPU again"
        )
    return Choice({shape for shape, fp16 in stored.items() if fp16}, chunk)
