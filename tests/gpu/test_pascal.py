"""recipe/pascal on a card, with torch alone: no transformers, no peft, so that another card's torch can run it too."""

import contextlib
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recipe.pascal import memory, probe
from recipe.pascal.attention import packed_attention
from recipe.pascal.int8 import Int8Linear, dequantize, quantize
from recipe.pascal.loss import chunked_nll
from recipe.pascal.recompute import recompute_first

pytestmark = pytest.mark.gpu


def test_int8_forward_and_backward_against_fp32(device, dtype):
    result = probe.int8(device, dtype)
    print(f"int8: relative error {result.error:.1e} on {device}")
    assert result.passed, result


@pytest.mark.parametrize(("rows", "columns"), [(11008, 4096), (4096, 11008)])
def test_int8_codes_are_the_cpus_to_the_bit(device, rows, columns):
    """A quantised copy that one machine wrote is what another would have made."""
    weight = torch.randn(rows // 8, columns, generator=torch.Generator().manual_seed(0)).half() * 0.02
    codes, scale = quantize(weight.to(device))
    expected, expected_scale = quantize(weight)
    assert torch.equal(codes.cpu(), expected) and torch.equal(scale.cpu(), expected_scale)


def test_the_product_is_finite_where_scale_last_overflows(device, dtype):
    """The defect of the usual fallback, on the device itself."""
    weight = torch.full((8, 4096), 0.02, device=device)
    codes, scale = quantize(weight)
    x = torch.ones(4, 4096, dtype=dtype, device=device)
    scale_last = (x @ codes.to(dtype).t()).half() * scale.half().t()
    ours = Int8Linear(weight)(x)
    assert torch.isinf(scale_last).all()
    assert torch.isfinite(ours).all() and (ours.float() - 81.92).abs().max() < 0.1


def test_attention_runs_in_the_memory_efficient_kernel(device, dtype):
    result = probe.attention(device, dtype)
    print(f"attention: relative error {result.error:.1e} on {device}")
    assert result.passed, result


def test_attention_over_a_long_conversation_makes_no_square(device, dtype):
    if device.type == "cpu":
        pytest.skip("a CPU's attention is the square")
    length, heads, width = 4096, 32, 128
    q, k, v = (torch.randn(1, heads, length, width, dtype=dtype, device=device, requires_grad=True) for _ in range(3))

    def work() -> None:
        output, _ = packed_attention(None, q, k, v, None, scaling=width**-0.5, lengths=[length])
        output.sum().backward()

    work()
    assert memory.peak_bytes(work, device) < heads * length**2 * 2


def test_a_pack_is_its_conversations(device, dtype):
    lengths = [200, 1, 77]
    q, k, v = (torch.randn(1, 4, sum(lengths), 64, dtype=dtype, device=device) for _ in range(3))
    packed, _ = packed_attention(None, q, k, v, None, scaling=64**-0.5, lengths=lengths)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        scores = (q[:, :, part].float() @ k[:, :, part].float().transpose(2, 3)) / 8
        scores = scores.masked_fill(torch.ones(length, length, device=device).triu(1).bool(), -math.inf)
        expected = (scores.softmax(-1) @ v[:, :, part].float()).transpose(1, 2)
        torch.testing.assert_close(packed[:, part].float(), expected, atol=5e-3, rtol=5e-3)
        start += length


def test_the_loss_is_cross_entropy(device, dtype):
    hidden = torch.randn(300, 256, device=device).to(dtype)
    weight = (torch.randn(1000, 256, device=device) * 0.1).to(dtype)
    targets = torch.randint(0, 1000, (300,), device=device)
    ours, exact = hidden.clone().requires_grad_(), hidden.float().requires_grad_()
    loss = chunked_nll(ours, weight, targets)
    expected = F.cross_entropy(exact @ weight.float().t(), targets, reduction="sum")
    (loss / 300).backward()
    (expected / 300).backward()
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=1e-2)
    torch.testing.assert_close(ours.grad.float(), exact.grad, rtol=2e-2, atol=2e-5)


class Norm(nn.Module):
    """As transformers' LlamaRMSNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class Lora(nn.Module):
    """As peft's lora.Linear: the adapter in fp32 beside a frozen base."""

    def __init__(self, base: nn.Module, fan_in: int, fan_out: int, rank: int) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = nn.Linear(fan_in, rank, bias=False), nn.Linear(rank, fan_out, bias=False)
        self.dropout = nn.Dropout(0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.base(x)
        wide = x.to(torch.float32)
        return (result + self.b(self.a(self.dropout(wide))) * 2.0).to(result.dtype)


class Layer(nn.Module):
    """As transformers' LlamaDecoderLayer with LoRA on q_proj and v_proj."""

    def __init__(self, shape: memory.Shape, rank: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.heads = shape.num_attention_heads
        for name, (fan_in, fan_out) in shape.linears().items():
            frozen = Int8Linear(torch.randn(fan_out, fan_in, device=device) * 0.02)
            adapted = name in ("q_proj", "v_proj")
            setattr(self, name, Lora(frozen, fan_in, fan_out, rank).to(device) if adapted else frozen)
        self.norms = nn.ModuleList(Norm(shape.hidden_size).to(device, dtype) for _ in range(2))

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        x = x + self.attend(self.norms[0](x), cos, sin, lengths)
        return x + self.mlp(self.norms[1](x))

    def attend(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        maps = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (each(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for each in maps)
        q, k = (part * cos + self.half_turned(part) * sin for part in (q, k))
        output, _ = packed_attention(self, q, k, v, None, scaling=q.shape[-1] ** -0.5, lengths=lengths)
        return self.o_proj(output.reshape(*x.shape[:2], -1).contiguous())

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    @staticmethod
    def half_turned(x: torch.Tensor) -> torch.Tensor:
        one, two = x.chunk(2, dim=-1)
        return torch.cat((-two, one), dim=-1)


@pytest.mark.parametrize("recomputed", [0, 2, 4])
def test_memory_of_a_step_is_the_plans(device, dtype, recomputed):
    """Four layers of a 7B (of a small model on a CPU), packed, with some of them recomputed, and the loss."""
    half = device.type == "cuda"
    wide = (4096, 11008, 4, 32, 32, 32000) if half else (256, 688, 4, 8, 8, 1000)
    shape = memory.Shape(*wide)
    length = 1024 if half else 128
    step = memory.Step(2, length, 2 * length, 8, ("q_proj", "v_proj"), True, half=half, on_card=half)
    layers = nn.ModuleList(Layer(shape, step.rank, dtype, device) for _ in range(shape.num_hidden_layers)).train()
    recompute_first(layers, recomputed)
    head = torch.randn(shape.vocab_size, shape.hidden_size, device=device).to(dtype) * 0.02
    norm = Norm(shape.hidden_size).to(device, dtype)
    embedded = torch.randn(1, step.tokens, shape.hidden_size, device=device).to(dtype)
    targets = torch.randint(0, shape.vocab_size, (step.tokens,), device=device)
    angles = torch.rand(1, 1, step.tokens, shape.hidden_size // shape.num_attention_heads, device=device)

    def work() -> None:
        with torch.autocast("cuda", torch.float16) if half else contextlib.nullcontext():
            x = embedded + 0
            cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
            for layer in layers:
                x = layer(x, cos, sin, lengths=[length, length])
            loss = chunked_nll(norm(x)[0], head, targets) / step.tokens
        loss.backward()

    work()
    work()
    peak = memory.peak_bytes(work, device)
    estimate = memory.estimate(shape, step, recomputed)
    expected = estimate.peak - estimate.weights - estimate.adapters - estimate.optimizer
    print(f"{recomputed} of 4 layers recomputed: {peak / 2**20:.0f} MiB, the plan says {expected / 2**20:.0f}")
    assert expected == pytest.approx(peak, rel=0.10)
    held = sum(tensor.numel() * tensor.element_size() for tensor in layers.state_dict().values())
    assert dequantize(layers[0].k_proj.weight, layers[0].k_proj.scale, dtype).dtype == dtype
    linear = shape.linear_parameters()
    assert linear < held < linear * 1.1  # a byte a weight, and little else
