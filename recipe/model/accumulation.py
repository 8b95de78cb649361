"""How the frozen layers of a run add where fp16 sums are asked for: tried on its card once, kept in its folder."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recipe.core.errors import RecipeError
from recipe.core.files import atomic_file
from recipe.core.text import say, snippet
from recipe.pascal import constants, gemm, probe

DECISION = "matmul.json"
Shapes = set[tuple[int, int]]


def choose(model: nn.Module, folder: Path, tokens: int, where: torch.device) -> None:
    """Switch those layers to fp16 sums whose shape is faster so, and right enough; a resumed run does as it began.

    Raises RecipeError where an earlier decision cannot be read, or is another model's.
    """
    path, shapes = folder / DECISION, gemm.shapes(model)
    if path.is_file():
        say(f"sums as {path} says")
    else:
        decision = decide(shapes, tokens, where)
        with atomic_file(path) as file:
            json.dump(decision, file, indent=1)
    chunk, chosen = read(path, shapes)
    gemm.use(model, chosen, chunk)


def decide(shapes: Shapes, tokens: int, where: torch.device) -> dict[str, Any]:
    """The probe's word on every shape, said as it comes."""
    try:
        races = probe.gemm(where, shapes, tokens)
    except RuntimeError as error:
        reason = snippet(str(error).partition("\n")[0])
        say(f"fp16 sums do not run on {where}, fp32 is kept: {reason}")
        rows: list[dict[str, Any]] = [{"fan_in": a, "fan_out": b, "fp16": False} for a, b in sorted(shapes)]
    else:
        for race in races:
            say(f"{race}: {'fp16 is taken' if race.won else 'fp32 is kept'}")
        rows = [dataclasses.asdict(race) | {"fp16": race.won} for race in races]
    torch.cuda.empty_cache()  # the probe's blocks are of sizes that no step has
    return {"chunk": constants.SPLIT_K, "tokens": tokens, "layers": rows}


def read(path: Path, shapes: Shapes) -> tuple[int, Shapes]:
    """(chunk, the (in, out) that add in fp16) of a decision about just these shapes."""
    try:
        decision = json.loads(path.read_text(encoding="utf-8"))
        known = {(row["fan_in"], row["fan_out"]): row["fp16"] is True for row in decision["layers"]}
        chunk = int(decision["chunk"])
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{path} is no decision about sums ({error!r}): delete it to try the card again") from None
    if known.keys() != shapes or chunk < 1:
        found = f"chunk {chunk} for layers {sorted(known)}"
        raise RecipeError(f"{path} has {found}, expected {sorted(shapes)}: delete it to try the card again")
    return chunk, {shape for shape, fp16 in known.items() if fp16}
