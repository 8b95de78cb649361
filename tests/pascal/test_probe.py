"""The doctor's probes on this CPU, and that they notice what they are for."""

import pytest
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


def benchmark(monkeypatch, fp16: float, fp32: float) -> probe.GemmBenchmark:
    """Of one small layer, with times as on a card: a CPU of this torch has no fp16 matmul to be timed."""
    times = {probe.matmul: fp16, torch.matmul: fp32}
    monkeypatch.setattr(probe, "median_milliseconds", lambda function, pairs: times[function])
    (found,) = probe.benchmark_gemm(CPU, {(768, 40)}, tokens=6)
    return found


def test_fp16_wins_where_they_are_faster_and_right(library, monkeypatch):
    found = benchmark(monkeypatch, fp16=1.0, fp32=2.0)
    assert found.fp16_wins and 1e-3 < found.error < probe.TOLERANCE[torch.float16]
    assert str(found).startswith("768 to 40: fp16 accumulation 1.00 ms, fp32 2.00 ms, error ")
    assert not benchmark(monkeypatch, fp16=2.0, fp32=2.0).fp16_wins


@pytest.mark.parametrize("wrong", [lambda y: y * 1.01, lambda y: y / 0])
def test_a_wrong_product_loses_however_fast(library, monkeypatch, wrong):
    real = probe.matmul
    monkeypatch.setattr(probe, "matmul", lambda x, weight: wrong(real(x, weight)))
    assert not benchmark(monkeypatch, fp16=1.0, fp32=2.0).fp16_wins


def test_a_product_wrong_in_one_direction_alone_is_noticed(library, monkeypatch):
    real = probe.matmul
    monkeypatch.setattr(probe, "matmul", lambda x, weight: real(x, weight) * (1.01 if weight.is_contiguous() else 1))
    assert not benchmark(monkeypatch, fp16=1.0, fp32=2.0).fp16_wins


def test_the_median_of_the_times_without_the_first(monkeypatch):
    clock = iter([0, 100, 100, 103, 103, 104, 104, 106])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls = []
    pairs = [(torch.ones(1), torch.ones(1))] * 2
    assert probe.median_milliseconds(lambda x, weight: calls.append(x), pairs, repeats=3) == 2000
    assert len(calls) == 8
