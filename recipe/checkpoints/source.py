"""What every reader yields: a checkpoint as a LLaMA config and tensors that are read one at a time."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recipe.core.errors import RecipeError
from recipe.core.text import snippet

if TYPE_CHECKING:
    from recipe.checkpoints.tokenizer import Tokenizer


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is still in its file. `read()` returns it with this shape and dtype, in memory of its own."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Source:
    """A checkpoint: `tensors` under Hugging Face's names and in its layout, `config` as LlamaConfig's keywords.

    `files` are what the weights, the config and the tokenizer are read from; `tokenizer()` builds the fast tokenizer
    for an embedding of that many rows; `repairs` lists what was corrected in its settings.
    """

    kind: str
    config: dict[str, Any]
    tensors: dict[str, LazyTensor]
    files: tuple[Path, ...]
    tokenizer: "Callable[[int], Tokenizer]"
    repairs: list[str] = field(default_factory=list)


def check_shapes(path: Path, tensors: Mapping[str, LazyTensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises RecipeError unless `tensors` has exactly the tensors that `expected` names, in these shapes."""
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise RecipeError(
            f"{path} lacks {missing[0]}{_more(missing)}, which its config requires: "
            "the checkpoint is incomplete, download it again"
        )
    extra = sorted(name for name in tensors if name not in expected)
    if extra:
        raise RecipeError(
            f"{path} holds {snippet(extra[0])}{_more(extra)}, which a LLaMA with its config does not have: "
            "only plain LLaMA models can be converted"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise RecipeError(
                f"{path}: {name} has the shape {list(tensors[name].shape)}, its config requires {list(shape)}: "
                "the weights and the config do not belong together"
            )
        if not tensors[name].dtype.is_floating_point:
            raise RecipeError(
                f"{path}: {name} is stored as {tensors[name].dtype}, expected fp16, bf16 or fp32: "
                "the weights are quantized already, convert the original checkpoint"
            )


def _more(names: Iterable[str]) -> str:
    count = len(list(names)) - 1
    return f" (and {count} more)" if count else ""
