"""The state of a training process as safetensors and JSON: optimizer, scheduler, loss scale, best validation.

torch.load, which Trainer uses, unpickles: a file of a stranger could execute code, in torch 2.0.1 even with
`weights_only=True` (CVE-2025-32434). These two files cannot, and they hold the same bits.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recipe.core.errors import RecipeError
from recipe.core.text import snippet

TENSORS, VALUES = "training_state.safetensors", "training_state.json"
KINDS = {"tuple": tuple, "list": list}


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write nested dicts (keys: str or int), lists and tuples of tensors and plain values into `folder`."""
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    values = _split(state, "state", tensors)
    (folder / TENSORS).write_bytes(save(tensors))
    (folder / VALUES).write_text(json.dumps(values) + "\n", encoding="utf-8")


def read_state(folder: Path) -> dict[str, Any]:
    """What `write_state` wrote, tensors on the CPU. Raises RecipeError if the files are missing or do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / TENSORS)
        state = _join(json.loads((folder / VALUES).read_text(encoding="utf-8")), tensors)
        if not isinstance(state, dict):
            raise TypeError("not a dict")
        return state
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise unreadable(folder, error) from None


def unreadable(folder: Path, error: Exception) -> RecipeError:
    """The error of a checkpoint whose state is missing, or not that of a training process."""
    return RecipeError(
        f"{folder} has no readable {TENSORS} and {VALUES} ({snippet(repr(error))}): another version of the recipe may "
        f"have written it; resume with that version, or remove {folder.parent} to start the run over"
    )


def _split(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON; its tensors go into `tensors`, under names made of the keys that lead to them."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)  # a copy: no shared memory
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _split(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_split(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, expected a tensor, a plain value or a container of them")


def _join(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `_split`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _join(item, tensors) for key, item in content}
    return KINDS[kind](_join(item, tensors) for item in content)
