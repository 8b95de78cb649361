"""Converted weights to a frozen LLaMA."""

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from recipe.checkpoints import hf_config, safetensors, tokenizer_json
from recipe.core.cpu import free_cores
from recipe.core.errors import RecipeError, UnfitError
from recipe.core.manifest import check_intact
from recipe.core.text import say, snippet
from recipe.model import quantized
from recipe.model.split import connect, device_map, device_of
from recipe.pascal.attention import packed_attention
from recipe.pascal.dtypes import compute_dtype

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ATTENTION = "packed"  # the name of recipe.pascal.attention among transformers' attention functions


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU, with a thread for each free core (`limit_threads`)."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)  # with its number: mem_get_info of torch 2.0.1 refuses a device without one
    limit_threads()
    return torch.device("cpu")


@functools.cache
def limit_threads() -> None:
    """Give up the threads whose cores other programs keep busy, once, and say so. OMP_NUM_THREADS decides if set."""
    if "OMP_NUM_THREADS" in os.environ or torch.get_num_threads() == 1:
        return
    free, usable = free_cores()
    if free < usable:
        say(
            f"other programs keep {usable - free} of {usable} cores busy: using {free} thread{'s' * (free > 1)}, since "
            f"waiting for a busy core slows every step down (OMP_NUM_THREADS={usable}: use all)"
        )
    torch.set_num_threads(min(free, torch.get_num_threads()))


def load_tokenizer(path: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer beside the converted weights. Raises RecipeError if it is missing or damaged."""
    from transformers import AutoTokenizer

    check_folder(path)
    tokenizer_json.check(path)
    try:
        # False, not None: transformers would ask in the terminal whether to run the folder's code
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of any class: a panic of the tokenizers library is not even an Exception
        reason = snippet(error, 100)
        raise RecipeError(f"the tokenizer files in {path} cannot be read ({reason}): convert or merge again") from None


def verify_base(path: Path, precision: str) -> Path | None:
    """The intact quantized copy of the base in `precision`, if there is one.

    Raises RecipeError if a file of the base is not what its manifest says. With a copy, the weights that it was made
    from are neither read nor hashed.
    """
    copy = quantized.find(path, precision)
    check_intact(path, skip_suffix=".safetensors" if copy else "")
    return copy


def load_cached(
    path: Path, precision: str, devices: torch.device | Sequence[torch.device], copy: Path | None
) -> "LlamaForCausalLM":
    """`load_base` from the quantized copy (`verify_base`); a missing one is written for the next start."""
    model = load_base(path, precision, devices, copy)
    if copy is None:
        save_copy(model, path, precision)
    return model


def save_copy(model: "LlamaForCausalLM", path: Path, precision: str) -> None:
    """Write the quantized copy of a base that was just loaded from its weights. Nothing to do for fp16 and fp32."""
    if precision in quantized.PRECISIONS:
        rest = (item for item in read_tensors(path) if not _is_quantized(model, item[0]))
        quantized.write(model, path, precision, rest)


def split_devices(device: torch.device, count: int) -> list[torch.device]:
    """The GPUs that share the layers of a base (`base.split`), the first ones. Raises UnfitError if there are fewer."""
    if count == 1:
        return [device]
    found = torch.cuda.device_count() if device.type == "cuda" else 0
    if found < count:
        raise UnfitError(
            f"found {found} visible GPU{'s' * (found != 1)}, expected the {count} of base.split: add GPUs, or lower "
            "base.split and look at `make plan`"
        )
    return [torch.device("cuda", number) for number in range(count)]


def load_base(
    path: Path, precision: str, devices: torch.device | Sequence[torch.device], copy: Path | None = None
) -> "LlamaForCausalLM":
    """Converted weights -> a frozen LlamaForCausalLM in eval mode. Writes nothing.

    devices: where it lies; several share its decoder layers (see `model.split`).

    precision int8, nf4: the linear layers of the decoder are quantized tensor by tensor as they are read, so the whole
    unquantized model is never in memory; with `copy`, the folder of a quantized copy, they are read from there, with
    the same bits. fp16, fp32: the dtype in memory (where the device computes in fp32, fp16 weights become fp32).
    Embeddings, norms and lm_head have the compute dtype. Raises RecipeError on a missing or unexpected tensor.
    """
    model = _empty_model(path)
    devices = [devices] if isinstance(devices, torch.device) else devices
    places = device_map(model.config.num_hidden_layers, devices)
    dtype = torch.float32 if precision == "fp32" else compute_dtype(devices[0])
    name = ""
    try:
        if copy:
            for name, tensors in quantized.read(copy):
                _restore(model, name, tensors, precision, dtype, device_of(name, places))
        else:
            for name, tensor in read_tensors(path):
                place_tensor(model, name, tensor, precision, dtype, device_of(name, places))
    except (AttributeError, ValueError) as error:
        raise RecipeError(f"{path}: {name} does not fit its own config.json ({error}); convert it again") from None
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise RecipeError(f"{path} lacks {missing[0]} and {len(missing) - 1} more tensors; convert it again")
    if len(devices) > 1:
        connect(model, places)
    else:
        model.to(devices[0])
    return model.requires_grad_(False).eval()


def _empty_model(path: Path) -> "LlamaForCausalLM":
    """The model of config.json, see `empty_model`. Raises RecipeError on a value that a LLaMA cannot have."""
    from transformers import LlamaConfig

    check_folder(path)
    config = LlamaConfig(**hf_config.read(Path(path), []))
    config._name_or_path = ""  # a path of this machine must not get into the adapter's config
    return empty_model(config)


def empty_model(config: "LlamaConfig") -> "LlamaForCausalLM":
    """A model with parameters on the meta device and this recipe's attention."""
    from accelerate import init_empty_weights
    from transformers import LlamaForCausalLM
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS[ATTENTION] = packed_attention
    config._attn_implementation = ATTENTION
    with init_empty_weights(include_buffers=False):
        return LlamaForCausalLM(config)


def read_tensors(path: Path) -> Iterable[tuple[str, torch.Tensor]]:
    """(name, tensor on the CPU) for every tensor of a folder of safetensors, one at a time."""
    for name, tensor in safetensors.open_folder(path).items():
        yield name, tensor.read()


def check_folder(path: Path) -> None:
    """Raises RecipeError if `path` is not a converted model."""
    if not (Path(path) / "config.json").is_file():
        raise RecipeError(f"{path} is not a converted model (no config.json): run `python -m recipe.convert` first")


def place_tensor(
    model: nn.Module, name: str, tensor: torch.Tensor, precision: str, dtype: torch.dtype, device: torch.device
) -> None:
    """Put one tensor into the model, quantized if `precision` says so. Raises ValueError on a wrong shape."""
    parent_name, _, leaf = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    expected = getattr(parent, leaf).shape
    if tensor.shape != expected:
        raise ValueError(f"found shape {list(tensor.shape)}, expected {list(expected)}")
    if precision in quantized.PRECISIONS and quantized.is_quantized(name, parent):
        _replace(model, parent_name, quantized.linear(tensor, precision, device, dtype))
    else:
        setattr(parent, leaf, nn.Parameter(tensor.to(device, dtype), requires_grad=False))


def _restore(
    model: nn.Module,
    name: str,
    tensors: dict[str, torch.Tensor],
    precision: str,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Put all tensors of one module of a quantized copy into the model."""
    if _is_quantized(model, f"{name}.weight"):
        _replace(model, name, quantized.restored(tensors, precision, device, dtype))
    else:
        for leaf, tensor in tensors.items():
            place_tensor(model, f"{name}.{leaf}", tensor, precision, dtype, device)


def _is_quantized(model: nn.Module, name: str) -> bool:
    return quantized.is_quantized(name, model.get_submodule(name.rpartition(".")[0]))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    outer, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(outer), attribute, module)
