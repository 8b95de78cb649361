"""The tensors of a LLaMA under Hugging Face's names: shapes, names in other formats, and the rotary layouts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from recipe.checkpoints.source import LazyTensor
from recipe.core.errors import RecipeError
from recipe.core.text import snippet

Layout = Callable[[torch.Tensor, int], torch.Tensor]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
NORM = "model.norm.weight"
# Hugging Face's part of a layer: (Meta's name, GGUF's name). Meta's and GGUF's q and k have the other rotary layout.
LAYER = {
    "self_attn.q_proj.weight": ("attention.wq.weight", "attn_q.weight"),
    "self_attn.k_proj.weight": ("attention.wk.weight", "attn_k.weight"),
    "self_attn.v_proj.weight": ("attention.wv.weight", "attn_v.weight"),
    "self_attn.o_proj.weight": ("attention.wo.weight", "attn_output.weight"),
    "mlp.gate_proj.weight": ("feed_forward.w1.weight", "ffn_gate.weight"),
    "mlp.down_proj.weight": ("feed_forward.w2.weight", "ffn_down.weight"),
    "mlp.up_proj.weight": ("feed_forward.w3.weight", "ffn_up.weight"),
    "input_layernorm.weight": ("attention_norm.weight", "attn_norm.weight"),
    "post_attention_layernorm.weight": ("ffn_norm.weight", "ffn_norm.weight"),
}
OUTER = {
    EMBEDDING: ("tok_embeddings.weight", "token_embd.weight"),
    NORM: ("norm.weight", "output_norm.weight"),
    HEAD: ("output.weight", "output.weight"),
}


def meta_names(layers: int) -> dict[str, str]:
    """Hugging Face's name -> Meta's, of every tensor of a model with that many layers."""
    return _names(layers, 0, "layers")


def gguf_names(layers: int) -> dict[str, str]:
    """Hugging Face's name -> GGUF's, of every tensor of a model with that many layers."""
    return _names(layers, 1, "blk")


def _names(layers: int, column: int, block: str) -> dict[str, str]:
    names = {hf: others[column] for hf, others in OUTER.items()}
    for layer in range(layers):
        names.update(
            {f"model.layers.{layer}.{hf}": f"{block}.{layer}.{others[column]}" for hf, others in LAYER.items()}
        )
    return names


def expected_shapes(config: Mapping[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that transformers wants for this config, in the model's order; no memory is used.

    A tied output layer is the embedding itself and is not listed. Raises RecipeError on settings that make no model.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    try:
        llama = LlamaConfig(**config)
        with torch.device("meta"):
            state = LlamaForCausalLM(llama).state_dict()
    except (ValueError, TypeError, ZeroDivisionError, KeyError, RuntimeError, AttributeError) as error:
        raise RecipeError(f"{path}: its config is not that of a LLaMA ({snippet(error)}): download it again") from None
    return {
        name: tuple(tensor.shape) for name, tensor in state.items() if not (name == HEAD and llama.tie_word_embeddings)
    }


def rotary_heads(name: str, config: Mapping[str, Any]) -> int:
    """Heads of a query or key projection (by Hugging Face's name); 0 for others, which have no rotary layout."""
    if name.endswith("q_proj.weight"):
        return config["num_attention_heads"]
    return config["num_key_value_heads"] if name.endswith("k_proj.weight") else 0


def renamed(tensor: LazyTensor, name: str, config: Mapping[str, Any], layout: Layout) -> LazyTensor:
    """`tensor` under another name; a query or key projection also gets the other rotary `layout` once it is read."""
    heads = rotary_heads(name, config) or rotary_heads(tensor.name, config)
    read = (lambda: layout(tensor.read(), heads)) if heads else tensor.read
    return LazyTensor(name, tensor.shape, tensor.dtype, read)


def to_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Meta's and GGUF's rotary layout -> Hugging Face's: [heads * head_dim, hidden], dtype kept.

    Meta rotates neighbouring pairs (0, 1), (2, 3), ...; Hugging Face element i with i + head_dim / 2.
    """
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def to_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `to_halves`."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
