"""recipe/pascal on a card, with torch alone: no transformers, no peft, so that another card's torch can run it too."""

import contextlib
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recipe.pascal import gemm, probe
from recipe.pascal.attention import packed_attention
from recipe.pascal.fused import apply_rotary, rms_norm, swiglu
from recipe.pascal.int8 import Int8Linear, dequantize, quantize
from recipe.pascal.lora import project
from recipe.pascal.loss import chunked_nll
from recipe.pascal.recompute import recompute_first
from recipe.planning import memory
from tests.pascal import fp16
from tests.planning import instruments

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


@pytest.fixture
def card(device) -> torch.device:
    """The device, where it has cuBLAS."""
    if device.type == "cpu":
        pytest.skip("fp16 sums are cuBLAS's: a CPU has none")
    return device


@pytest.mark.parametrize(("fan_in", "fan_out"), [(4096, 4096), (4096, 11008), (11008, 4096)])
def test_fp16_sums_against_fp32_in_both_directions(card, fan_in, fan_out):
    """A layer of a 7B's, more rows than are multiplied at a time, and no whole number of them."""
    generator = torch.Generator(card).manual_seed(0)
    weight = (torch.randn(fan_out, fan_in, generator=generator, device=card) * 0.02).half()
    for columns, one in ((fan_in, weight.t()), (fan_out, weight)):
        x = torch.randn(3, 401, columns, generator=generator, device=card)
        x[..., :8] *= 40
        x = x.half()
        y, exact = gemm.matmul(x, one), x.float() @ one.float()
        error = float((y.float() - exact).norm() / exact.norm())
        print(f"[{x.shape[0] * x.shape[1]}, {columns}] x {list(one.shape)}: error {error:.1e} on {card}")
        assert y.shape == exact.shape and error < probe.TOLERANCE[torch.float16]


@pytest.mark.parametrize("k", [4096, 11008])
@pytest.mark.parametrize("chunk", [256, 512, 1024, 11008])
def test_the_emulation_predicts_the_cards_error(card, k, chunk):
    """Within a factor of two where sums are made by fp16 FMAs; tensor cores (7.0 on) add several products at once."""
    x, w = fp16.outliers(48, k, 48)
    predicted = fp16.error(fp16.matmul(x, w, chunk), x, w)
    y = gemm.matmul(torch.from_numpy(x).to(card), torch.from_numpy(w).to(card), chunk)
    error = fp16.error(y.cpu().numpy(), x, w)
    print(f"K = {k}, chunk {chunk}: error {error:.1e} on {card}, {predicted:.1e} predicted")
    assert error < 2 * predicted
    if torch.cuda.get_device_capability() < (7, 0):
        assert error > predicted / 2


def test_the_chunks_are_added_in_fp32(card):
    x = torch.tensor([[2048.0, 1, 1, 1, 1]], device=card).half()
    assert gemm.matmul(x, torch.ones(5, 1, device=card).half(), chunk=1).item() == 2052


def test_an_int8_layer_with_fp16_sums_trains_as_with_fp32(card):
    layer = Int8Linear(torch.randn(1376, 4096, device=card) * 0.02)
    x, upstream = torch.randn(64, 4096, device=card).half(), torch.randn(64, 1376, device=card).half()
    found = []
    for chosen in ({(4096, 1376)}, set()):
        gemm.accumulate_in_fp16(layer, chosen)
        given = x.clone().requires_grad_()
        y = layer(given)
        y.backward(upstream)
        found.append((y.detach().float(), given.grad.float()))
    for ours, torchs in zip(*found, strict=True):
        assert 0 < (ours - torchs).norm() / torchs.norm() < probe.TOLERANCE[torch.float16]


def test_which_sums_are_faster_on_this_card(card):
    for result in probe.benchmark_gemm(card, {(4096, 4096), (4096, 11008), (11008, 4096)}, tokens=2048):
        print(f"{result} on {torch.cuda.get_device_name()}")
        assert result.error <= probe.TOLERANCE[torch.float16]
        assert result.fp16_wins == (result.fp16_ms < result.fp32_ms)


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
    assert instruments.peak_bytes(work, device) < heads * length**2 * 2


def test_a_shared_beginning_gives_what_each_with_its_own_gives(device, dtype):
    shared, lengths = 31, [90, 400, 32]
    whole = [torch.randn(1, 4, sum(lengths), 64, dtype=dtype, device=device) for _ in range(3)]
    parts = [list(tensor.split(lengths, dim=2)) for tensor in whole]
    for tensors in parts:
        for part in tensors[1:]:
            part[:, :, :shared] = tensors[0][:, :, :shared]
    once = [torch.cat([each[0], *(part[:, :, shared:] for part in each[1:])], dim=2) for each in parts]
    expected, _ = packed_attention(None, *whole, None, scaling=64**-0.5, lengths=lengths)
    own = [part[:, shared * (number > 0) :] for number, part in enumerate(expected.split(lengths, dim=1))]
    packed, _ = packed_attention(None, *once, None, scaling=64**-0.5, lengths=lengths, prefix=shared)
    torch.testing.assert_close(packed, torch.cat(own, dim=1), atol=5e-3, rtol=5e-3)


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
    """As transformers' LlamaRMSNorm, fused."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, 1e-6)


class Lora(nn.Module):
    """What `project` reads of peft's lora.Linear: the adapter in fp32 beside a frozen base."""

    active_adapters = ("default",)
    disable_adapters = merged = False

    def __init__(self, base: nn.Module, fan_in: int, fan_out: int, rank: int) -> None:
        super().__init__()
        self.base_layer, self.scaling = base, {"default": 2.0}
        self.lora_A = nn.ModuleDict({"default": nn.Linear(fan_in, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, fan_out, bias=False)})
        self.lora_dropout = nn.ModuleDict({"default": nn.Dropout(0.05)})


class Layer(nn.Module):
    """As transformers' LlamaDecoderLayer with LoRA on q_proj and v_proj, with the fused parts that training uses."""

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
        q, k, v = (each.view(*x.shape[:2], self.heads, -1).transpose(1, 2) for each in project(x, *maps))
        q, k = apply_rotary(q, k, cos, sin)
        output, _ = packed_attention(self, q, k, v, None, scaling=q.shape[-1] ** -0.5, lengths=lengths)
        return self.o_proj(output.reshape(*x.shape[:2], -1).contiguous())

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


@pytest.mark.parametrize(("recomputed", "fp16_sums"), [(0, False), (2, False), (4, False), (4, True)])
def test_memory_of_a_step_is_the_plans(device, dtype, recomputed, fp16_sums):
    """Four layers of a 7B (of a small model on a CPU), packed, with some of them recomputed, and the loss."""
    half = dtype == torch.float16
    if fp16_sums and not half:
        pytest.skip("fp16 sums are cuBLAS's: a CPU has none")
    wide = (4096, 11008, 4, 32, 32, 32000) if half else (256, 688, 4, 8, 8, 1000)
    shape = memory.Shape(*wide)
    lengths = [1024, 1024] if half else [192]
    tokens = sum(lengths)
    targets = ("q_proj", "v_proj")
    step = memory.Step(
        tokens, tokens, 8, targets, True, cuda=device.type == "cuda", fp16_arithmetic=half, fp16_accumulation=fp16_sums
    )
    layers = nn.ModuleList(Layer(shape, step.rank, dtype, device) for _ in range(shape.num_hidden_layers)).train()
    gemm.accumulate_in_fp16(layers, gemm.int8_shapes(layers) if fp16_sums else ())
    recompute_first(layers, recomputed)
    head = torch.randn(shape.vocab_size, shape.hidden_size, device=device).to(dtype) * 0.02
    norm = Norm(shape.hidden_size).to(device, dtype)
    embedded = torch.randn(1, step.tokens, shape.hidden_size, device=device).to(dtype)
    targets = torch.randint(0, shape.vocab_size, (step.tokens,), device=device)
    half_angles = torch.rand(1, step.tokens, shape.hidden_size // shape.num_attention_heads // 2, device=device)
    angles = half_angles.repeat(1, 1, 2)

    def work() -> None:
        with torch.autocast("cuda", torch.float16) if half else contextlib.nullcontext():
            x = embedded + 0
            cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
            for layer in layers:
                x = layer(x, cos, sin, lengths=lengths)
            loss = chunked_nll(norm(x)[0], head, targets) / step.tokens
        loss.backward()

    work()
    work()
    peak = instruments.peak_bytes(work, device)
    estimate = memory.estimate_memory(shape, step, recomputed)
    expected = estimate.peak - estimate.weights - estimate.adapters - estimate.optimizer
    print(f"{recomputed} of 4 layers recomputed: {peak / 2**20:.0f} MiB, the plan says {expected / 2**20:.0f}")
    assert expected == pytest.approx(peak, rel=0.10)
    held = sum(tensor.numel() * tensor.element_size() for tensor in layers.state_dict().values())
    assert dequantize(layers[0].k_proj.weight, layers[0].k_proj.scale, dtype).dtype == dtype
    linear = shape.linear_parameters()
    assert linear < held < linear * 1.1  # a byte a weight, and little else
