"""Adapters computed together against peft's own layers: values, gradients, dropout, what is kept."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from recipe.pascal import lora
from recipe.pascal.int8 import Int8Linear
from recipe.pascal.lora import project
from tests.planning import instruments

WIDTH, OUT, RANK, TOKENS = 24, (40, 16, 32), 4, 9
NEAR = {"rtol": 5e-5, "atol": 1e-4}  # fp32 sums in another order


class Layers(nn.Module):
    def __init__(self, int8: bool) -> None:
        super().__init__()
        for name, out in zip("abc", OUT, strict=True):
            layer = nn.Linear(WIDTH, out, bias=False)
            setattr(self, name, Int8Linear(layer.weight.data) if int8 else layer)


def layers(targets: str = "abc", dropout: float = 0.0, int8: bool = True) -> list[Any]:
    torch.manual_seed(0)
    settings = LoraConfig(r=RANK, lora_alpha=12, lora_dropout=dropout, target_modules=list(targets))
    model = inject_adapter_in_model(settings, Layers(int8).requires_grad_(False))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return [model.a, model.b, model.c]


def trained(modules: list[Any]) -> list[torch.Tensor]:
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


def gradients(outputs: Any, x: torch.Tensor, modules: list[Any]) -> list[torch.Tensor]:
    torch.manual_seed(1)
    loss = sum((output * torch.randn_like(output)).sum() for output in outputs)
    return list(torch.autograd.grad(loss, [x, *trained(modules)]))


@pytest.mark.parametrize("int8", [True, False], ids=["int8", "fp32"])
@pytest.mark.parametrize("targets", ["abc", "ac", "b"])
def test_values_and_gradients_are_those_of_peft(targets, int8):
    modules, x = layers(targets, int8=int8), torch.randn(2, TOKENS, WIDTH, requires_grad=True)
    outputs, expected = project(x, *modules), [module(x) for module in modules]
    torch.testing.assert_close(list(outputs), expected, **NEAR)
    torch.testing.assert_close(gradients(outputs, x, modules), gradients(expected, x, modules), **NEAR)


def test_gradients_are_those_of_finite_differences():
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    ups = [torch.randn(out, 5 - 2 * index, dtype=torch.float64, requires_grad=True) for index, out in enumerate((4, 3))]
    down = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    outputs = [torch.randn(5, out, dtype=torch.float64, requires_grad=True) for out in (4, 3)]

    def add(x, down, *rest):
        frozen = [output * 1.0 for output in rest[:2]]
        return lora._AddAdapters.apply(x, down, (0.25, 7), *frozen, *rest[2:])

    assert torch.autograd.gradcheck(add, (x, down, *outputs, *ups))


def test_an_input_without_a_gradient_gets_none():
    modules, x = layers(), torch.randn(TOKENS, WIDTH)
    expected = torch.autograd.grad(sum(module(x).sum() for module in modules), trained(modules))
    found = torch.autograd.grad(sum(output.sum() for output in project(x, *modules)), trained(modules))
    torch.testing.assert_close(found, expected)


def test_dropout_drops_the_share_scales_the_rest_and_draws_the_same_mask_backwards():
    modules = [layer.train() for layer in layers(dropout=0.25)]
    x = torch.randn(400, WIDTH, requires_grad=True)
    torch.manual_seed(5)
    outputs = project(x, *modules)
    torch.manual_seed(5)
    mask = lora._drop(torch.ones_like(x), lora._draw_dropout(0.25))
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (mask == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    adapters = [(m.lora_A["default"].weight, m.lora_B["default"].weight) for m in modules]
    expected = [m.base_layer(x) + 3 * (x * mask) @ a.t() @ b.t() for m, (a, b) in zip(modules, adapters, strict=True)]
    torch.testing.assert_close(list(outputs), expected, **NEAR)
    torch.testing.assert_close(gradients(outputs, x, modules), gradients(expected, x, modules), **NEAR)
    assert not torch.equal(project(x, *modules)[0], outputs[0]), "each forward pass draws a new mask"
    for module in modules:
        module.eval()
    torch.testing.assert_close(list(project(x, *modules)), [module(x) for module in modules])


def test_a_disabled_adapter_adds_nothing():
    modules, x = layers(), torch.randn(TOKENS, WIDTH)
    for module in modules:
        module.enable_adapters(False)
    assert torch.equal(project(x, *modules)[0], modules[0].base_layer(x))


def test_what_is_kept_is_one_input_and_the_products_with_a():
    modules = [layer.train() for layer in layers(dropout=0.1)]
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)
    holder = nn.ModuleList(modules)
    kept = instruments.kept_bytes(lambda: sum(output.sum() for output in project(x, *modules)), holder)
    own = 4 * (3 * RANK * WIDTH + RANK * sum(OUT))  # A side by side, each B with its scale
    assert kept == 4 * TOKENS * (WIDTH + 3 * RANK) + own
    theirs = instruments.kept_bytes(lambda: sum(module(x).sum() for module in modules), holder)
    assert theirs > 4 * TOKENS * 6 * WIDTH  # for each layer, the input after dropout and the mask


def test_the_adapter_under_autocast_is_in_16_bits():
    modules, x = layers(), torch.randn(TOKENS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, expected = project(x, *modules), [module(x) for module in copy.deepcopy(modules)]
    assert all(output.dtype == torch.bfloat16 for output in outputs)
    torch.testing.assert_close(list(outputs), expected, rtol=0.05, atol=0.05)
    found = gradients(outputs, x, modules)
    assert [grad.dtype for grad in found] == [torch.bfloat16] + [torch.float32] * 6
