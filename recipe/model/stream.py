"""A model whose weights are read layer by layer while it runs: one decoder layer in memory, whatever its size."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from recipe.checkpoints import llama
from recipe.checkpoints.source import LazyTensor
from recipe.core.text import progress
from recipe.model.likelihood import autocast, by_conversation, targets_of
from recipe.model.load import empty_model
from recipe.pascal.dtypes import compute_dtype
from recipe.pascal.loss import token_nll

Delta = tuple[torch.Tensor, torch.Tensor]  # (scaled B [out, r], A [r, in]), fp32
CPU = torch.device("cpu")


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


def stream_token_nll(
    config: LlamaConfig,
    tensors: Mapping[str, LazyTensor],
    packs: Sequence[Mapping[str, Any]],
    device: torch.device,
    deltas: Mapping[str, Delta] | None = None,
    what: str = "",
) -> list[list[list[float]]]:
    """Negative log-likelihood in nats of every trained token, for each conversation of each pack.

    As `likelihood.pack_token_nll`, with one decoder layer and the hidden states of all packs in memory: each weight is
    read once. `tensors` and `deltas` as for `stream_logits`; `what` names the model in the progress bar.
    """
    model = empty_model(config).eval()
    dtype = compute_dtype(device)
    if config.tie_word_embeddings:
        tensors = {**tensors, llama.HEAD: tensors[llama.EMBEDDING]}
    names = {module: name for name, module in model.named_modules()}
    inner = model.model
    with torch.no_grad(), autocast(device):
        with _loaded(inner.embed_tokens, names, tensors, device, dtype):
            hidden = [inner.embed_tokens(pack["input_ids"].to(device)) for pack in packs]
        rotary = inner.rotary_emb.to(device)
        for layer in progress(inner.layers, desc=what, unit=" layers"):
            _add_deltas(layer, names[layer], deltas or {}, device)
            with _loaded(layer, names, tensors, device, dtype):
                hidden = [_layer_output(layer, rotary, state, pack) for state, pack in zip(hidden, packs, strict=True)]
        with _loaded(inner.norm, names, tensors, device, dtype):
            hidden = [inner.norm(state) for state in hidden]
        with _loaded(model.lm_head, names, tensors, device, dtype):
            return [_losses(state, model.lm_head.weight, pack) for state, pack in zip(hidden, packs, strict=True)]


def _layer_output(layer: nn.Module, rotary: nn.Module, hidden: torch.Tensor, pack: Mapping[str, Any]) -> torch.Tensor:
    positions = pack["position_ids"].to(hidden.device)
    return layer(
        hidden,
        attention_mask=torch.empty(1, 1, 1, 1, device=hidden.device),  # not read
        position_ids=positions,
        position_embeddings=rotary(hidden, positions),
        lengths=pack["lengths"],
        prefix=pack["prefix"],
    )[0]


def _losses(hidden: torch.Tensor, head: torch.Tensor, pack: Mapping[str, Any]) -> list[list[float]]:
    keep, targets = targets_of(pack, hidden.device)
    return by_conversation(pack, token_nll(hidden[0, keep], head, targets))


@contextlib.contextmanager
def _loaded(
    stage: nn.Module,
    names: Mapping[nn.Module, str],
    tensors: Mapping[str, LazyTensor],
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[None]:
    """The weights of `stage` in memory while the block runs."""
    _load(stage, names[stage], tensors, device, dtype)
    yield
    _drop(stage, names[stage])


def _load_on_demand(stage: nn.Module, prefix: str, tensors: Mapping[str, LazyTensor]) -> None:
    """Hooks that read the weights of `stage` just before it runs, as fp32, and drop them just after."""
    stage.register_forward_pre_hook(lambda *_: _load(stage, prefix, tensors, CPU, torch.float32))
    stage.register_forward_hook(lambda *_: _drop(stage, prefix))


def _load(
    stage: nn.Module, prefix: str, tensors: Mapping[str, LazyTensor], device: torch.device, dtype: torch.dtype
) -> None:
    for module, leaf, name in list(_parameters(stage, prefix)):
        setattr(module, leaf, nn.Parameter(tensors[name].read().to(device, dtype), requires_grad=False))


def _drop(stage: nn.Module, prefix: str) -> None:
    for module, leaf, _name in list(_parameters(stage, prefix)):
        setattr(module, leaf, nn.Parameter(getattr(module, leaf).to("meta"), requires_grad=False))


def _add_deltas(stage: nn.Module, prefix: str, deltas: Mapping[str, Delta], device: torch.device = CPU) -> None:
    def low_rank(b: torch.Tensor, a: torch.Tensor) -> Callable[..., torch.Tensor]:
        return lambda module, inputs, output: output + ((inputs[0].float() @ a.t()) @ b.t()).to(output.dtype)

    for module, _leaf, name in _parameters(stage, prefix):
        if name in deltas:
            b, a = deltas[name]
            module.register_forward_hook(low_rank(b.to(device), a.to(device)))


def _parameters(stage: nn.Module, prefix: str) -> Iterator[tuple[nn.Module, str, str]]:
    """(module, attribute, full name) of every parameter of `stage`, whose own name is `prefix`."""
    for inner, module in stage.named_modules():
        for leaf, _ in module.named_parameters(recurse=False):
            yield module, leaf, ".".join(part for part in (prefix, inner, leaf) if part)
