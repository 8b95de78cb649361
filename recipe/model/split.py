"""A base whose decoder layers are spread over several GPUs, which take turns: for a base that does not fit one.

The first GPU holds everything else too: embeddings, the last norm, lm_head, and so inputs, hidden states and loss.
Only the states between two layers move from GPU to GPU, and their gradients back. accelerate's own hooks do not run on
torch 2.0 (accelerate 1.15 calls torch.compiler), so torch's are used; the map of devices is in accelerate's form.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from recipe.pascal.constants import layer_ranges

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

DeviceMap = Mapping[str, torch.device]


def device_map(layers: int, devices: Sequence[torch.device]) -> dict[str, torch.device]:
    """Module name -> device, in accelerate's form: `layers` decoder layers over `devices`, the rest on the first."""
    names = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
    shares = zip(layer_ranges(layers, len(devices)), devices, strict=True)
    spread = {f"model.layers.{number}": device for numbers, device in shares for number in numbers}
    return dict.fromkeys(names, devices[0]) | spread


def device_of(name: str, places: DeviceMap) -> torch.device:
    """The device of a parameter or a module inside one of the modules in `places`, or that of what is in none."""
    while name and name not in places:
        name = name.rpartition(".")[0]
    return places.get(name, places["lm_head"])


def connect(model: "LlamaForCausalLM", places: DeviceMap) -> None:
    """Move what each layer, and the norm after the last one, is called with to its device: the arguments of a pack too.

    Trainer and accelerate leave a model with `hf_device_map` where it is.
    """
    from accelerate.utils import send_to_device

    def move(device: torch.device, module: nn.Module, *arguments: Any) -> Any:
        return send_to_device(arguments, device)

    for name, device in places.items():
        model.get_submodule(name).register_forward_pre_hook(partial(move, device), with_kwargs=True)
    model.model.rotary_emb.to(places["model.rotary_emb"])  # its buffer is in no file
    model.hf_device_map = dict(places)


def groups(model: "LlamaForCausalLM") -> list[list[nn.Module]]:
    """The decoder layers by device, in order: one group if the model is not split."""
    places: DeviceMap = getattr(model, "hf_device_map", {})
    found: dict[torch.device | None, list[nn.Module]] = {}
    for number, layer in enumerate(model.model.layers):
        found.setdefault(places.get(f"model.layers.{number}"), []).append(layer)
    return list(found.values())
