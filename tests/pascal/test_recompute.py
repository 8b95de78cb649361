"""Recomputing any number of layers changes no gradient, and keeps fewer activations."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from recipe.pascal.attention import packed_attention
from recipe.pascal.recompute import recompute_first

LENGTHS = [6, 3, 7]


@pytest.fixture
def model(monkeypatch):
    """Three layers, LoRA with dropout, packed attention: what training runs."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "packed_under_test", packed_attention)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        attn_implementation="packed_under_test",
    )
    lora = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.3, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    return get_peft_model(LlamaForCausalLM(config), lora).train()


def step(model) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Logits, gradients and the number of bytes that autograd keeps between forward and backward."""
    torch.manual_seed(1)
    ids = torch.randint(0, 61, (1, sum(LENGTHS)))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(input_ids=ids, use_cache=False, lengths=LENGTHS).logits
    size = sum(kept.values())
    model.zero_grad()
    logits.square().mean().backward()
    return logits.detach(), [p.grad.clone() for p in model.parameters() if p.requires_grad], size


def layers(model):
    return model.get_base_model().model.layers


def test_gradients_are_identical_for_every_choice_and_memory_falls(model):
    expected_logits, expected, size = step(model)
    assert any(grad.abs().max() > 0 for grad in expected)
    for count in (1, 2, 3):
        recompute_first(layers(model), count)
        logits, grads, smaller = step(model)
        assert torch.equal(logits, expected_logits)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(grads, expected, strict=True))
        assert smaller < size
        size = smaller
    recompute_first(layers(model), 0)
    assert not any("forward" in layer.__dict__ for layer in layers(model))


def test_only_the_chosen_layers_run_twice(model):
    runs = []
    for number, layer in enumerate(layers(model)):
        layer.mlp.register_forward_hook(lambda *_, number=number: runs.append(number))
    recompute_first(layers(model), 2)
    step(model)
    assert sorted(runs) == [0, 0, 1, 1, 2]
    runs.clear()
    with torch.no_grad():
        model(input_ids=torch.ones(1, 4, dtype=torch.long), use_cache=False, lengths=[4])
    assert runs == [0, 1, 2]


def test_the_packs_borders_reach_the_recomputed_layers(model):
    """A conversation's logits do not move when its neighbour's tokens do."""
    recompute_first(layers(model), 3)
    model.eval()
    ids = torch.randint(0, 61, (1, sum(LENGTHS)))
    other = ids.clone()
    other[:, : LENGTHS[0]] += 1
    other %= 61
    one, two = (model(input_ids=x, use_cache=False, lengths=LENGTHS).logits[:, LENGTHS[0] :] for x in (ids, other))
    assert torch.equal(one, two)


@pytest.mark.parametrize("count", [-1, 4])
def test_more_layers_than_there_are(model, count):
    with pytest.raises(ValueError, match="of 3 layers"):
        recompute_first(layers(model), count)
