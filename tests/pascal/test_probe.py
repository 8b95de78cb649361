"""The doctor's probes on this CPU, and that they notice what they are for."""

import torch
from torch.nn import functional as F

from recipe.pascal import int8, probe

CPU = torch.device("cpu")


def test_both_pass_where_arithmetic_is_right():
    assert probe.int8(CPU, torch.float32, width=512).passed
    assert probe.attention(CPU, torch.float32).passed


def test_scale_last_arithmetic_is_noticed(monkeypatch):
    """What the usual fallback does: multiply by the codes in fp16, scale the product afterwards."""

    def scale_last(self, x):
        return (x.float() @ self.weight.float().t()).half().float() * self.scale.t()

    monkeypatch.setattr(int8.Int8Linear, "forward", scale_last)
    result = probe.int8(CPU, torch.float32)
    assert not result.finite and not result.passed


def test_an_attention_that_sees_the_future_is_noticed(monkeypatch):
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, is_causal: real(q, k, v))
    result = probe.attention(CPU, torch.float32)
    assert result.finite and not result.passed
