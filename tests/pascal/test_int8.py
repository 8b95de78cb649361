"""Int8 storage against what it replaces: the fp32 layer, and autograd over the dequantised weight."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recipe.pascal.int8 import INT8_MAX, Int8Linear, dequantize, quantize


def outlier_layer(rows: int = 96, columns: int = 64) -> nn.Linear:
    """A layer like those of a real LLaMA: small normal weights and a few large ones."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(columns, rows, bias=False)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    weight[:, :2] *= 40
    layer.weight = nn.Parameter(weight)
    return layer


@settings(max_examples=60)
@given(st.integers(1, 9), st.integers(1, 33), st.floats(1e-8, 1e4), st.integers(0, 2**31))
def test_error_of_every_weight_is_at_most_half_its_rows_scale(rows, columns, size, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    codes, scale = quantize(weight)
    assert codes.dtype == torch.int8 and scale.shape == (rows, 1) and codes.abs().max() <= INT8_MAX
    error = (dequantize(codes, scale, torch.float32) - weight).abs()
    assert (error <= scale * 0.5001).all()


def test_a_row_of_zeros_stays_zero():
    codes, scale = quantize(torch.zeros(2, 3))
    assert dequantize(codes, scale, torch.float16).eq(0).all() and torch.isfinite(scale).all()


def test_a_weight_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="inf or NaN"):
        quantize(torch.tensor([[1.0, float("inf")]]))


def test_fp16_weights_are_the_fp32_product_rounded_once():
    """A row of tiny weights: its scale is subnormal in fp16, so a product formed in fp16 would lose half its bits."""
    codes, scale = quantize(torch.linspace(-1e-3, 1e-3, 255).view(1, -1))
    assert scale.item() < 6.1e-5
    exact = (codes.double() * scale.double()).half()
    assert torch.equal(dequantize(codes, scale, torch.float16), exact)
    assert not torch.equal(codes.half() * scale.half(), exact)


def test_forward_and_gradients_equal_the_dequantised_reference():
    layer = outlier_layer()
    ours = Int8Linear(layer.weight.data)
    reference = copy.deepcopy(layer)
    reference.weight = nn.Parameter(dequantize(ours.weight, ours.scale, torch.float32))
    x = torch.randn(3, 5, 64)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(one), reference(two)
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(one.grad, two.grad)


def test_int8_stays_close_to_the_original_layer():
    torch.manual_seed(0)
    layer = outlier_layer()
    x = torch.randn(64, 64)
    error = (Int8Linear(layer.weight.data)(x) - layer(x)).norm() / layer(x).norm()
    assert error < 0.02


def test_scale_last_overflows_fp16_where_dequantise_first_does_not():
    """The defect this layer avoids: codes times activations exceed 65,504 before the scale brings them back."""
    weight = torch.full((1, 4096), 0.02)
    x = torch.ones(1, 4096)
    codes, scale = quantize(weight)
    scale_last = (x @ codes.float().t()).half() * scale.half()
    dequantise_first = (x @ dequantize(codes, scale, torch.float16).float().t()).half()
    assert torch.isinf(scale_last).all()
    assert torch.isfinite(dequantise_first).all() and abs(dequantise_first.item() - 81.92) < 0.1


def test_nothing_is_saved_for_backward_but_the_codes():
    layer = Int8Linear(torch.randn(8, 4))
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(2, 4, requires_grad=True))
    assert {tensor.data_ptr() for tensor in saved} == {layer.weight.data_ptr(), layer.scale.data_ptr()}


def test_casting_the_model_leaves_codes_and_scale_alone():
    layer = Int8Linear(torch.randn(8, 4) * 1e-3)
    scale = layer.scale.clone()
    layer.half()
    assert layer.weight.dtype == torch.int8
    assert torch.equal(layer.scale, scale) and layer.scale.dtype == torch.float32


def test_state_dict_round_trip():
    one, two = Int8Linear(torch.randn(8, 4)), Int8Linear(torch.randn(8, 4))
    two.load_state_dict(one.state_dict())
    x = torch.randn(2, 4)
    assert torch.equal(one(x), two(x))


def test_peft_takes_it_as_a_frozen_base_and_trains_the_adapter():
    from peft import LoraConfig, get_peft_model

    model = nn.Sequential()
    model.add_module("proj", Int8Linear(torch.randn(8, 4)))
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["proj"], init_lora_weights="gaussian"))
    codes = model.proj.base_layer.weight.clone()
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    x, target = torch.randn(16, 4), torch.randn(16, 8)
    losses = []
    for _ in range(30):
        loss = (tuned(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.9
    assert torch.equal(model.proj.base_layer.weight, codes)
