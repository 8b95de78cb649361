"""Everything that is changed in a model for training, in one place and once."""

from typing import TYPE_CHECKING, Any

from recipe.model.likelihood import causal_lm
from recipe.model.split import groups
from recipe.pascal.constants import recomputed_by_gpu
from recipe.pascal.fused import fuse_layers
from recipe.pascal.gemm import accumulate_in_fp16
from recipe.pascal.recompute import recompute_first

if TYPE_CHECKING:
    from recipe.model.accumulation import Choice


def prepare_for_training(model: Any, recompute: int = 0, accumulation: "Choice | None" = None) -> None:
    """Change `model` (a LLaMA or a PeftModel around one) in place, before its Trainer is made.

    Its norms, MLPs and rotary embeddings keep less for the backward pass (pascal.fused), `recompute` decoder
    layers, the first ones on each GPU, use activation checkpointing (pascal.recompute), and the int8 layers of the
    shapes in `accumulation` accumulate in fp16 (pascal.gemm). Raises ValueError if the model has fewer layers.
    """
    llama = causal_lm(model).model
    norms = [norm for layer in llama.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    fuse_layers(
        [*norms, llama.norm], [layer.mlp for layer in llama.layers], [layer.self_attn for layer in llama.layers]
    )
    by_gpu = groups(causal_lm(model))
    for layers, count in zip(by_gpu, recomputed_by_gpu(len(llama.layers), len(by_gpu), recompute), strict=True):
        recompute_first(layers, count)
    if accumulation:
        accumulate_in_fp16(model, accumulation.shapes, accumulation.chunk)
