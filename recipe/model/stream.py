"""A model whose weights are read layer by layer while it runs: one decoder layer in memory, whatever its size."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from recipe.checkpoints import llama
from recipe.checkpoints.source import LazyTensor

Delta = tuple[torch.Tensor, torch.Tensor]  # (scaled B [out, r], A [r, in]), fp32


def stream_logits(
    config: LlamaConfig,
    tensors: Mapping[str, LazyTensor],
    ids: Sequence[int],
    deltas: Mapping[str, Delta] | None = None,
) -> torch.Tensor:
    """fp32 logits [tokens, vocabulary] of transformers' own model for one sequence of token ids, on the CPU.

    `tensors` have Hugging Face's names and layout; each is read as its layer begins and dropped as it ends. With
    `deltas` (weight name -> low-rank factors) a layer adds B(Ax) beside its weight, as LoRA does: nothing is merged.
    """
    config._attn_implementation = "eager"
    with init_empty_weights(include_buffers=False):
        model = LlamaForCausalLM(config).eval()
    if config.tie_word_embeddings:
        tensors = {**tensors, llama.HEAD: tensors[llama.EMBEDDING]}
    names = {module: name for name, module in model.named_modules()}
    for stage in (model.model.embed_tokens, *model.model.layers, model.model.norm, model.lm_head):
        _load_on_demand(stage, names[stage], tensors)
        _add_deltas(stage, names[stage], deltas or {})
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


def _load_on_demand(stage: nn.Module, prefix: str, tensors: Mapping[str, LazyTensor]) -> None:
    """Hooks that read the weights of `stage` just before it runs, as fp32, and drop them just after."""

    def load(*_: Any) -> None:
        for module, leaf, name in list(_parameters(stage, prefix)):
            setattr(module, leaf, nn.Parameter(tensors[name].read().float(), requires_grad=False))

    def drop(*_: Any) -> None:
        for module, leaf, _name in list(_parameters(stage, prefix)):
            setattr(module, leaf, nn.Parameter(getattr(module, leaf).to("meta"), requires_grad=False))

    stage.register_forward_pre_hook(load)
    stage.register_forward_hook(drop)


def _add_deltas(stage: nn.Module, prefix: str, deltas: Mapping[str, Delta]) -> None:
    def low_rank(b: torch.Tensor, a: torch.Tensor) -> Callable[..., torch.Tensor]:
        return lambda module, inputs, output: output + (inputs[0] @ a.t()) @ b.t()

    for module, _leaf, name in _parameters(stage, prefix):
        if name in deltas:
            module.register_forward_hook(low_rank(*deltas[name]))


def _parameters(stage: nn.Module, prefix: str) -> Iterator[tuple[nn.Module, str, str]]:
    """(module, attribute, full name) of every parameter of `stage`, whose own name is `prefix`."""
    for inner, module in stage.named_modules():
        for leaf, _ in module.named_parameters(recurse=False):
            yield module, leaf, ".".join(part for part in (prefix, inner, leaf) if part)
