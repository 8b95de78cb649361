"""What a run does when a step fails: out of memory, a loss that is not finite, gradients that overflow for long."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from recipe.core.errors import RecipeError
from recipe.core.files import atomic_file
from recipe.core.text import say
from recipe.pascal.recompute import count_recomputed, recompute_first
from recipe.training.dataset import collate, separate

# The loss scale starts at 65,536 and halves when a gradient overflows: a few steps in a row are skipped at the start
# of every run. After 20 it is below 0.1, and the gradient overflows for another reason.
MAX_SKIPPED = 20


# CUDA loads a kernel into memory that is not torch's when it is first used, which may be hours after the start.
KERNEL_BYTES = 300 << 20  # assumed


def leave_memory(devices: Sequence[torch.device]) -> None:
    """Leave the last KERNEL_BYTES of free memory on these GPUs to CUDA, so that torch's allocator fails before it does.

    Without a limit a long run takes all: packs have many sizes, and the allocator keeps blocks of each.
    """
    for device in devices:
        free, total = torch.cuda.mem_get_info(device)
        most = free + torch.cuda.memory_reserved(device) - KERNEL_BYTES
        torch.cuda.set_per_process_memory_fraction(max(0, most) / total, device)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: for torch's allocator, for a kernel that CUDA loads, or for cuBLAS."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    said = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED when calling")
    return any(text in str(error) for text in said)


class MemoryFallback:
    """What is done when a GPU runs out of memory, mildest first.

    First every layer is recomputed, which changes no bit. Then a pack is computed in two parts, in four, and so on: the
    optimizer step keeps its packs and their loss its weights, so the run stays the same run; but dropout draws other
    numbers and sums are added in another order.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        self.layers = layers
        self.parts = 1  # forward passes for a pack
        self.split_packs = 0  # packs of the run that were computed in parts

    def relieve(self, pack: Mapping[str, Any], step: int) -> None:
        """Use less memory from now on. Raises RecipeError if `pack` cannot be computed with less."""
        torch.cuda.empty_cache()
        layers, recomputed = len(self.layers), count_recomputed(self.layers)
        if recomputed < layers:
            recompute_first(self.layers, layers)
            say(
                f"out of memory in step {step}: activation checkpointing in all {layers} layers from now on, instead "
                f"of {recomputed}; the result stays the same"
            )
        elif self.parts < len(pack["lengths"]):
            self.parts *= 2
            say(
                f"out of memory in step {step} with all layers recomputed: each pack is computed in {self.parts} parts "
                "from now on; the global batch stays the same, dropout draws other numbers (the manifest says so)"
            )
        else:
            raise RecipeError(
                f"out of memory in step {step} on a conversation of {max(pack['lengths'])} tokens, with all layers "
                "recomputed and no other conversation beside it, expected it to fit: stop other programs on the GPU, "
                "or lower corpus.max_length (`make plan` says what fits); the checkpoints are kept"
            )

    def split(self, pack: dict[str, Any]) -> list[dict[str, Any]]:
        """The pack, or its conversations as up to `parts` smaller packs of about as many tokens each."""
        if self.parts == 1 or len(pack["lengths"]) == 1:
            return [pack]
        parts: list[list[dict[str, list[int]]]] = [[] for _ in range(self.parts)]
        for sample in sorted(separate(pack), key=_tokens, reverse=True):
            min(parts, key=lambda part: sum(map(_tokens, part))).append(sample)
        return [collate(samples, pack["prefix"]) for samples in parts if samples]

    def state_dict(self) -> dict[str, int]:
        return {"parts": self.parts, "split_packs": self.split_packs}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.parts, self.split_packs = state["parts"], state["split_packs"]
        if self.parts > 1:
            recompute_first(self.layers, len(self.layers))


def _tokens(sample: Mapping[str, Sequence[int]]) -> int:
    return len(sample["input_ids"])


class SkippedSteps(TrainerCallback):
    """Counts the optimizer steps that were skipped because a scaled fp16 gradient overflowed."""

    def __init__(self, was_skipped: Callable[[], bool], fail: Callable[[str], None]) -> None:
        """was_skipped: whether the last step was; fail: ends the run with a sentence about a failed step."""
        self.was_skipped, self.fail = was_skipped, fail
        self.total = self.row = 0

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.was_skipped():
            self.row = 0
            return
        self.total, self.row = self.total + 1, self.row + 1
        if self.row > MAX_SKIPPED:
            self.fail(f"{self.row} optimizer steps in a row were skipped: a gradient overflowed at every loss scale")

    def state_dict(self) -> dict[str, int]:
        return {"total": self.total, "row": self.row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.total, self.row = state["total"], state["row"]


def write_batch(path: Path, step: int, packs: Sequence[Mapping[str, Any]], chosen: Sequence[Sequence[int]]) -> None:
    """Write the packs of a failed step as JSON. chosen: the rows of the corpus in each pack of the run.

    Each conversation has its line in train.jsonl and its token ids; `packs` are those of the step so far, and the last
    of them failed.
    """
    content = [
        {
            "pack": pack["number"],
            "conversations": [
                {"line": row + 1, "input_ids": sample["input_ids"]}
                for row, sample in zip(chosen[pack["number"]], separate(pack), strict=True)
            ],
        }
        for pack in packs
    ]
    with atomic_file(path) as file:
        json.dump({"step": step, "packs": content}, file)
        file.write("\n")
