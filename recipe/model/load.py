"""Converted weights to a frozen LLaMA."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from recipe.checkpoints import safetensors
from recipe.core.errors import RecipeError
from recipe.model import quantized
from recipe.pascal.attention import packed_attention
from recipe.pascal.fused import slim

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ATTENTION = "packed"  # the name of recipe.pascal.attention among transformers' attention functions


def default_device() -> torch.device:
    """The card if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(where: torch.device) -> torch.dtype:
    """fp16 on a card (Pascal has no bf16); fp32 on a CPU, where torch 2.0 has no half-precision matmul."""
    return torch.float16 if where.type == "cuda" else torch.float32


def load_tokenizer(path: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that `convert` left beside the weights."""
    from transformers import AutoTokenizer

    check_folder(path)
    return AutoTokenizer.from_pretrained(str(path), local_files_only=True)


def load_base(path: Path, precision: str, where: torch.device, copy: Path | None = None) -> "LlamaForCausalLM":
    """Converted weights -> a frozen LlamaForCausalLM in eval mode on `where`.

    precision int8, nf4: the decoder's linear layers are quantised tensor by tensor as they are read, so the unquantised
    model never exists, and a copy is left beside the weights, which the next call reads instead, to the same bits
    (`copy`: its folder, where the caller has just found it intact);
    fp16, fp32: stored as such (on a CPU fp16 weights compute, and so lie, in fp32).
    Embeddings, norms and lm_head are in the compute dtype. Raises RecipeError on a missing or superfluous tensor.
    """
    from accelerate import init_empty_weights
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    check_folder(path)
    config = LlamaConfig.from_pretrained(str(path), local_files_only=True)
    ALL_ATTENTION_FUNCTIONS[ATTENTION] = packed_attention
    config._attn_implementation = ATTENTION
    config._name_or_path = ""  # a path of this machine must not reach the adapter's config
    with init_empty_weights(include_buffers=False):
        model = LlamaForCausalLM(config)
    dtype = torch.float32 if precision == "fp32" else compute_dtype(where)
    cached = copy or quantized.find(path, precision)
    try:
        if cached:
            for name, tensors in quantized.read(cached):
                _restore(model, name, tensors, precision, dtype, where)
        else:
            for name, tensor in read_tensors(path):
                _place(model, name, tensor, precision, dtype, where)
    except (AttributeError, ValueError) as error:
        raise RecipeError(f"{path}: {name} does not fit its own config.json ({error}); convert it again") from None
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise RecipeError(f"{path} lacks {missing[0]} and {len(missing) - 1} more tensors; convert it again")
    model.to(where).requires_grad_(False).eval()
    layers = model.model.layers
    norms = [norm for layer in layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    slim([*norms, model.model.norm], [layer.mlp for layer in layers], [layer.self_attn for layer in layers])
    if precision in quantized.PRECISIONS and not cached:
        rest = (item for item in read_tensors(path) if not _is_quantised(model, item[0]))
        quantized.write(model, Path(path), precision, rest)
    return model


def read_tensors(path: Path) -> Iterable[tuple[str, torch.Tensor]]:
    """(name, tensor on the CPU) for every tensor of a folder of safetensors, one at a time."""
    for name, tensor in safetensors.open_folder(path).items():
        yield name, tensor.read()


def check_folder(path: Path) -> None:
    """Raises RecipeError where `path` is not a converted model."""
    if not (Path(path) / "config.json").is_file():
        raise RecipeError(f"{path} is not a converted model (no config.json): run `python -m recipe.convert` first")


def _place(model: nn.Module, name: str, tensor: torch.Tensor, precision: str, dtype: torch.dtype, where: Any) -> None:
    parent_name, _, leaf = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    expected = getattr(parent, leaf).shape
    if tensor.shape != expected:
        raise ValueError(f"found shape {list(tensor.shape)}, expected {list(expected)}")
    if precision in quantized.PRECISIONS and quantized.is_quantised(name, parent):
        _replace(model, parent_name, quantized.linear(tensor, precision, where, dtype))
    else:
        setattr(parent, leaf, nn.Parameter(tensor.to(where, dtype), requires_grad=False))


def _restore(
    model: nn.Module, name: str, tensors: dict[str, torch.Tensor], precision: str, dtype: torch.dtype, where: Any
) -> None:
    """What `_place` did when the quantised copy was made; here `tensors` are all of one module."""
    if _is_quantised(model, f"{name}.weight"):
        _replace(model, name, quantized.restored(tensors, precision, where, dtype))
    else:
        for leaf, tensor in tensors.items():
            _place(model, f"{name}.{leaf}", tensor, precision, dtype, where)


def _is_quantised(model: nn.Module, name: str) -> bool:
    return quantized.is_quantised(name, model.get_submodule(name.rpartition(".")[0]))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    outer, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(outer), attribute, module)
