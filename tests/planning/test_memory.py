"""The memory model against real steps, as autograd and the allocator count them on a CPU.

The decoder layer is transformers' own with peft's LoRA and an int8 base; bfloat16 under autocast has on a CPU the
widths that float16 has on a GPU. No number in recipe/planning/memory.py belongs to one shape.
"""

import contextlib
import dataclasses

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

from recipe.conversations.packing import pack
from recipe.model.likelihood import trained_nll
from recipe.model.load import ATTENTION
from recipe.pascal.attention import packed_attention
from recipe.pascal.constants import partial_bytes
from recipe.pascal.fused import fuse_layers
from recipe.pascal.int8 import Int8Linear
from recipe.planning import memory
from recipe.planning.memory import Shape, Step
from tests.planning import instruments

CPU = torch.device("cpu")
SLIM = (LlamaRMSNorm, LlamaMLP, LlamaAttention)
PLAIN = Shape(256, 688, 1, 8, 8, 1000)
GROUPED = Shape(192, 512, 1, 6, 2, 1000)
LLAMA_7B = Shape(4096, 11008, 1, 32, 32, 32000)  # one layer of it
QV = ("q_proj", "v_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Autocast(Step):
    """A step on a CPU under autocast to bfloat16, which the recipe does not run: it measures the 16-bit terms."""

    half = True


def step(tokens=512, targets=QV, half=False, **changes) -> Step:
    given = {"trained": tokens - 1, "rank": 8, "dropout": True, "cuda": False}
    return (Autocast if half else Step)(tokens=tokens, targets=targets, **(given | changes))


def freeze(model: nn.Module, wanted: Step) -> nn.Module:
    """In place: int8 linear layers, 16-bit rest under autocast, LoRA in fp32."""
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    if wanted.half:
        model.to(torch.bfloat16)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head" and wanted.precision == "int8":
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Int8Linear(module.weight.data))
    dropout = 0.1 if wanted.dropout else 0.0
    model = inject_adapter_in_model(
        LoraConfig(r=wanted.rank, target_modules=list(wanted.targets), lora_dropout=dropout), model
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    slim_llama(model)
    return model.train()


def slim_llama(model: nn.Module) -> None:
    """As recipe.model.load does it."""
    fuse_layers(*([module for module in model.modules() if isinstance(module, kind)] for kind in SLIM))


def llama_config(shape: Shape):
    from transformers import LlamaConfig
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = LlamaConfig(**dataclasses.asdict(shape))
    ALL_ATTENTION_FUNCTIONS[ATTENTION] = packed_attention
    config._attn_implementation = ATTENTION
    return config


def autocast(wanted: Step):
    return torch.autocast("cpu", torch.bfloat16) if wanted.half else contextlib.nullcontext()


def decoder_layer(shape: Shape, wanted: Step, lengths=None, shared=0):
    """(layer, its loss as a function): one LlamaDecoderLayer between others, so its input has a gradient.

    The pack is one conversation, or those of `lengths` with a common prefix.
    """
    lengths = lengths or [wanted.tokens]
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = llama_config(shape)
    with torch.device("meta"):
        layer = LlamaDecoderLayer(config, 0)
    layer = freeze(layer.to_empty(device=CPU).apply(_fill), wanted)
    dtype = torch.bfloat16 if wanted.half else torch.float32
    positions = torch.cat([torch.arange(shared), *(torch.arange(shared, length) for length in lengths)])[None]
    hidden = torch.randn(1, positions.numel(), shape.hidden_size, dtype=dtype).requires_grad_()
    embedded = LlamaRotaryEmbedding(config)(hidden, positions)
    given = {"position_embeddings": embedded, "lengths": lengths, "prefix": shared}

    def loss() -> torch.Tensor:
        with autocast(wanted):
            entering = hidden.clone()  # made in the step, as the layer before would: the first norm keeps it
            return layer(entering, attention_mask=None, **given)[0].float().sum()

    return layer, loss


def _fill(module: nn.Module) -> None:
    """Cheaper than torch's initialisation, and enough: memory does not depend on values."""
    for parameter in module.parameters(recurse=False):
        parameter.data.fill_(0.01)


def measured(shape: Shape, wanted: Step, lengths=None, shared=0) -> tuple[int, int]:
    """(kept for backward, peak of forward and backward) of one layer, in bytes."""
    layer, loss = decoder_layer(shape, wanted, lengths, shared)
    kept = instruments.kept_bytes(loss, layer)
    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)  # as after a first step: counted among the adapters
    # with AVX-512, torch multiplies bfloat16 by oneDNN, which needs memory of its own; on a GPU nothing does
    with torch.backends.mkldnn.flags(enabled=not wanted.half):
        return kept, instruments.peak_bytes(lambda: loss().backward(), CPU)


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [(PLAIN, [192]), (GROUPED, [224]), (PLAIN, [320]), (GROUPED, [256, 256])],
    ids=["plain-192", "grouped-224", "plain-320", "grouped-2x256"],
)
@pytest.mark.parametrize(
    ("targets", "dropout", "half"),
    [(QV, True, True), (QV, False, False), (ALL, True, False), (ALL, False, True)],
    ids=["qv-dropout-16bit", "qv-plain-fp32", "all-dropout-fp32", "all-plain-16bit"],
)
def test_one_layer_keeps_and_takes_what_the_arithmetic_says(shape, lengths, targets, dropout, half):
    wanted = step(sum(lengths), targets, dropout=dropout, half=half)
    kept, peak = measured(shape, wanted, lengths)
    assert memory.layer_kept(shape, wanted) == pytest.approx(kept, rel=0.05)
    assert memory.layer_kept(shape, wanted) + memory.layer_work(shape, wanted) == pytest.approx(peak, rel=0.10)


def test_a_layer_in_fp32_under_autocast_keeps_no_more_than_planned():
    """Autocast keeps a 16-bit copy of each frozen weight, and the residual stream stays in fp32."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    wanted, config = step(320, half=True, precision="fp32"), llama_config(PLAIN)
    layer = LlamaDecoderLayer(config, 0).requires_grad_(False)
    adapters = LoraConfig(r=wanted.rank, target_modules=list(wanted.targets), lora_dropout=0.1)
    layer = inject_adapter_in_model(adapters, layer).train()
    slim_llama(layer)
    hidden = torch.randn(1, wanted.tokens, PLAIN.hidden_size).requires_grad_()
    cos, sin = LlamaRotaryEmbedding(config)(hidden, torch.arange(wanted.tokens)[None])

    def loss():
        with torch.autocast("cpu", torch.bfloat16):
            rotary = {"position_embeddings": (cos, sin), "attention_mask": None}
            return layer(hidden.clone(), lengths=[wanted.tokens], prefix=0, **rotary)[0].float().sum()

    kept = instruments.kept_bytes(loss, layer)
    assert 0.75 * memory.layer_kept(PLAIN, wanted) <= kept <= memory.layer_kept(PLAIN, wanted)


@pytest.mark.parametrize("half", [False, True])
def test_a_full_pack_with_a_shared_beginning_takes_no_more_than_one_long_conversation(half):
    """The beginning is most of each: the copies that attention keeps of it are what `packing.saved` leaves charged."""
    shared, length, budget = 200, 260, 1024
    packs = pack([length] * 100, budget, seed=0, prefix=shared)
    lengths = [length] * len(packs[0])
    assert len(lengths) == 7 > budget // length
    wanted = step(budget, dropout=False, half=half)
    kept, peak = measured(PLAIN, wanted, lengths, shared)
    assert kept <= memory.layer_kept(PLAIN, wanted)
    assert peak <= memory.layer_kept(PLAIN, wanted) + memory.layer_work(PLAIN, wanted)
    # on a GPU attention keeps its output, too: four tensors of a query's size
    on_gpu = step(budget, cuda=True)
    copied = 4 * 2 * LLAMA_7B.hidden_size + 4 * LLAMA_7B.num_attention_heads
    assert copied <= memory.layer_kept(LLAMA_7B, on_gpu) / budget / 3


@pytest.mark.slow
def test_a_real_layer_of_7b():
    """In fp32: a CPU's bfloat16 matmul of this size takes minutes."""
    wanted = step(128, QV)
    kept, peak = measured(LLAMA_7B, wanted)
    assert memory.layer_kept(LLAMA_7B, wanted) == pytest.approx(kept, rel=0.05)
    assert memory.layer_kept(LLAMA_7B, wanted) + memory.layer_work(LLAMA_7B, wanted) == pytest.approx(peak, rel=0.10)


@pytest.mark.parametrize("recomputed", [0, 3, 6])
def test_a_whole_step_with_some_layers_recomputed(recomputed):
    """Six layers, a loss at every token, the first layers recomputed; without what lay there before."""
    shape, wanted = dataclasses.replace(PLAIN, num_hidden_layers=6, vocab_size=2000), step(256)
    model, work = whole_step(shape, wanted, recomputed)
    work()
    work()  # the second with gradients in place
    peak = instruments.peak_bytes(work, CPU)
    estimate = memory.estimate_memory(shape, wanted, recomputed)
    held = estimate.weights + estimate.adapters + estimate.optimizer
    assert estimate.peak - held == pytest.approx(peak, rel=0.10)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == memory.adapter_parameters(shape, wanted)


def whole_step(shape: Shape, wanted: Step, recomputed: int):
    """(model, forward and backward as recipe.trainer does it)."""
    from transformers import LlamaForCausalLM

    from recipe.pascal.recompute import recompute_first
    from recipe.training.dataset import collate

    model = freeze(LlamaForCausalLM(llama_config(shape)), wanted)
    recompute_first(model.model.layers, recomputed)
    ids = list(range(3, 3 + wanted.tokens))
    batch = collate([{"input_ids": ids, "labels": ids}])

    def work() -> None:
        nll, count = trained_nll(model, batch)
        (nll / count).backward()

    return model, work


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_weights_are_those_of_the_real_model(precision):
    from transformers import LlamaForCausalLM

    shape = dataclasses.replace(GROUPED, num_hidden_layers=2)
    wanted = step(precision=precision)
    model = freeze(LlamaForCausalLM(llama_config(shape)), wanted)
    tensors = [tensor for name, tensor in [*model.named_parameters(), *model.named_buffers()] if "lora_" not in name]
    found = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.dim() > 1 or len(tensor) > 64)
    assert memory.weight_bytes(shape, wanted) == pytest.approx(found, rel=1e-3)


def test_recomputing_more_layers_takes_less_and_the_fewest_is_the_fewest():
    shape, wanted = dataclasses.replace(LLAMA_7B, num_hidden_layers=32), step(2048, cuda=True)
    peaks = [memory.estimate_memory(shape, wanted, count).peak for count in range(33)]
    assert peaks[:-1] == sorted(peaks[:-1], reverse=True)
    assert peaks[-1] - peaks[-2] == 2048 * 4096 * 2  # the last layer runs backward first: its input is kept for nothing
    for count in (0, 7, 31):
        assert memory.fewest_recomputed(shape, wanted, peaks[count]) == next(
            fewer for fewer, peak in enumerate(peaks) if peak <= peaks[count]
        )
    assert memory.fewest_recomputed(shape, wanted, min(peaks) - 1) is None


@pytest.mark.parametrize("split", [1, 2, 3])
def test_the_gpus_of_a_split_base_hold_it_once(split):
    shape = Shape(256, 688, 7, 8, 8, 1000)
    whole, wanted = step(512, cuda=True), step(512, cuda=True, split=split)
    found = memory.estimate_by_gpu(shape, wanted, 3)
    one = memory.estimate_memory(shape, whole, 3)
    assert len(found) == split and memory.estimate_memory(shape, wanted, 3) in found
    assert sum(estimate.weights for estimate in found) == pytest.approx(one.weights, abs=split)
    assert sum(estimate.adapters for estimate in found) == one.adapters
    assert sum(estimate.optimizer for estimate in found) == one.optimizer
    assert sum(estimate.kept for estimate in found) == one.kept
    assert [estimate.loss > 0 for estimate in found] == [True] + [False] * (split - 1)


def test_a_gpu_keeps_the_output_of_attention_and_no_scores():
    fused = memory.layer_kept(LLAMA_7B, step(2048, cuda=True, dropout=False))
    tiled = memory.layer_kept(LLAMA_7B, step(2048, half=True, dropout=False))
    output = 2048 * 4096 * 2  # both keep a number per head and query, too
    assert fused - tiled == output


def test_the_tracker_counts_what_torch_allocates():
    """One tensor of a million bytes that stays, one of two million that goes before the next comes."""

    def work() -> None:
        kept = torch.empty(1_000_000, dtype=torch.uint8)
        torch.empty(2_000_000, dtype=torch.uint8)
        torch.empty(1_500_000, dtype=torch.uint8)
        del kept

    assert instruments.peak_bytes(work, CPU) == pytest.approx(3_000_000, abs=1000)


def test_the_tracker_counts_a_kept_storage_once_and_no_parameter():
    layer = nn.Linear(100, 50)
    x = torch.randn(10, 100, requires_grad=True)
    assert instruments.kept_bytes(lambda: layer(x).sum(), layer) == x.numel() * 4
    assert instruments.kept_bytes(lambda: (layer(x) * layer(x)).sum(), layer) == x.numel() * 4 + 2 * 10 * 50 * 4


def test_fp16_accumulation_adds_its_split_k_partials():
    shape = Shape(4096, 11008, 32, 32, 32, 32000)
    step = Step(2048, 2048, 8, ("q_proj", "v_proj"), True)
    more = dataclasses.replace(step, fp16_accumulation=True)
    found = memory.estimate_memory(shape, more, 32).peak - memory.estimate_memory(shape, step, 32).peak
    assert found == partial_bytes(2048, 11008, 4096) == 22 * 512 * 4096 * 2
