"""Packed attention against transformers' eager attention, and against what keeps torch on its memory-efficient path."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from recipe.pascal.attention import packed_attention

LENGTHS = [5, 1, 9, 2]


@pytest.fixture(scope="module")
def models():
    """The same grouped-query LLaMA twice: eager, and with the packed attention registered under a name."""
    ALL_ATTENTION_FUNCTIONS["packed_under_test"] = packed_attention
    torch.manual_seed(0)
    settings = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "eos_token_id": 96,
    }
    eager = LlamaForCausalLM(LlamaConfig(**settings, attn_implementation="eager")).eval()
    packed = copy.deepcopy(eager)
    packed.config._attn_implementation = "packed_under_test"
    yield eager, packed
    del ALL_ATTENTION_FUNCTIONS["packed_under_test"]


@pytest.fixture
def calls(monkeypatch):
    """The arguments of every SDPA call, which is made all the same."""
    seen, real = [], F.scaled_dot_product_attention

    def spy(*args, **kwargs):
        seen.append((args, kwargs))
        return real(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return seen


def states(heads: int, kv_heads: int, length: int, width: int = 16) -> list[torch.Tensor]:
    torch.manual_seed(1)
    shapes = [(1, heads, length, width), (1, kv_heads, length, width), (1, kv_heads, length, width)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


class Module:
    """What the eager function asks of its layer."""

    training = True

    def __init__(self, groups: int) -> None:
        self.num_key_value_groups = groups


def block_causal(lengths: list[int]) -> torch.Tensor:
    """The additive mask [1, 1, S, S] of the same pack, for the path that needs one."""
    allowed = torch.block_diag(*[torch.ones(n, n).tril() for n in lengths]).bool()
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("scaling", [None, 16**-0.5, 0.37])
def test_outputs_and_gradients_equal_eagers(kv_heads, scaling):
    inputs = states(6, kv_heads, sum(LENGTHS))
    ours, weights = packed_attention(Module(6 // kv_heads), *inputs, None, scaling=scaling, lengths=LENGTHS)
    assert weights is None and ours.is_contiguous()
    probe = torch.randn_like(ours)
    our_grads = torch.autograd.grad((ours * probe).sum(), inputs)
    expected, _ = eager_attention_forward(Module(6 // kv_heads), *inputs, block_causal(LENGTHS), scaling or 16**-0.5)
    expected_grads = torch.autograd.grad((expected * probe).sum(), inputs)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(our_grads, expected_grads, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("lengths", [[5, 4, 9, 6], [300, 270]], ids=["short", "in-blocks"])
def test_a_shared_beginning_is_seen_by_all_and_computed_once(lengths):
    """Against eager attention over the same tokens with the beginning written out before each conversation."""
    shared = 3
    inputs = states(6, 2, sum(lengths) - shared * (len(lengths) - 1))
    ours, _ = packed_attention(Module(3), *inputs, None, lengths=lengths, prefix=shared)
    probe = torch.randn_like(ours)
    our_grads = torch.autograd.grad((ours * probe).sum(), inputs)

    own = torch.arange(shared, inputs[0].shape[2]).split([length - shared for length in lengths])
    places = torch.cat([torch.cat([torch.arange(shared), part]) for part in own])
    first = torch.tensor([places.tolist().index(place) for place in range(inputs[0].shape[2])])
    written_out = [tensor[:, :, places] for tensor in inputs]
    expected, _ = eager_attention_forward(Module(3), *written_out, block_causal(lengths), 16**-0.5)
    expected_grads = torch.autograd.grad((expected[:, first] * probe).sum(), inputs)
    assert ours.shape[1] < len(places)
    torch.testing.assert_close(ours, expected[:, first], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(our_grads, expected_grads, rtol=1e-5, atol=5e-6)


def test_a_conversation_never_sees_another():
    inputs = states(4, 4, sum(LENGTHS))
    ours, _ = packed_attention(Module(1), *inputs, None, lengths=LENGTHS)
    second = slice(LENGTHS[0], LENGTHS[0] + LENGTHS[1] + LENGTHS[2])
    grads = torch.autograd.grad(ours[:, second].sum(), inputs)
    for grad in grads:
        assert grad[:, :, : second.start].eq(0).all() and grad[:, :, second.stop :].eq(0).all()


def test_every_call_passes_the_gate_of_the_memory_efficient_kernel(calls, models):
    """The gate in torch 2.0.1: no mask, dropout 0, no scale, q k v alike in heads and length, last dimension dense."""
    _, packed = models
    packed.train()
    ids = torch.arange(1, 1 + sum(LENGTHS))[None]
    packed(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, lengths=LENGTHS)
    packed.eval()
    assert len(calls) == 2 * len(LENGTHS)
    for number, (args, kwargs) in enumerate(calls):
        assert kwargs == {"is_causal": True} and len(args) == 3
        assert {tuple(tensor.shape) for tensor in args} == {(1, 6, LENGTHS[number % len(LENGTHS)], 8)}
        assert all(tensor.stride(-1) == 1 for tensor in args)


def test_dropout_and_a_pack_of_another_length_are_refused():
    inputs = states(2, 2, 7)
    with pytest.raises(ValueError, match=r"attention dropout is 0\.1, expected 0"):
        packed_attention(Module(1), *inputs, None, dropout=0.1, lengths=[7])
    for lengths, shared, tokens in (([3, 5], 0, 8), ([3, 5], 2, 6)):
        with pytest.raises(ValueError, match=rf"prefix of {shared} has {tokens} tokens, found 7 queries and 7 keys"):
            packed_attention(Module(1), *inputs, None, lengths=lengths, prefix=shared)
    with pytest.raises(ValueError, match="need a mask"):
        packed_attention(Module(1), inputs[0][:, :, -3:], *inputs[1:], None)


@pytest.mark.parametrize("queries", [1, 7])
def test_without_a_mask_a_prompt_is_causal_and_a_next_token_sees_the_whole_cache(queries):
    query, key, value = states(4, 2, 7)
    ours, _ = packed_attention(Module(2), query[:, :, -queries:], key, value, None)
    expected, _ = eager_attention_forward(Module(2), query, key, value, block_causal([7]), 0.25)
    torch.testing.assert_close(ours, expected[:, -queries:], rtol=1e-5, atol=1e-6)


def test_a_whole_pack_equals_its_conversations_one_at_a_time(models):
    """Through the real model: positions restart, `lengths` reaches every layer."""
    eager, packed = models
    ids = torch.randint(1, 96, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(2))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    with torch.no_grad():
        ours = packed(input_ids=ids, position_ids=positions, use_cache=False, lengths=LENGTHS).logits
        alone = [eager(input_ids=part, use_cache=False).logits for part in ids.split(LENGTHS, dim=1)]
    torch.testing.assert_close(ours, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", [0, 3])
def test_generation_with_a_cache_is_eagers(models, padding):
    """Prefill, then one query over a growing key; with padding on the left the mask is a real one."""
    eager, packed = models
    ids = torch.randint(1, 96, (2, 8), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    asked = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    assert torch.equal(packed.generate(**asked), eager.generate(**asked))
