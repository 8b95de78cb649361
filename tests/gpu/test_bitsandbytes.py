"""The references that stand in for bitsandbytes' CUDA kernels in CPU tests, against those kernels. Any CUDA device."""

import copy

import pytest
import torch

from tests.model import nf4
from tests.training import adamw8bit

pytestmark = pytest.mark.gpu


@pytest.fixture
def functional(device):
    """bitsandbytes' functions, if there is a GPU for their kernels."""
    if device.type == "cpu":
        pytest.skip("the kernels need CUDA: the references were not compared")
    pytest.importorskip("bitsandbytes")
    from bitsandbytes import functional

    return functional


@pytest.fixture
def weight() -> torch.Tensor:
    """fp16 [512, 1024], normal with outliers, as in a LLaMA."""
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[:, :2] *= 40
    return weight.half()


def unpack(packed: torch.Tensor) -> torch.Tensor:
    flat = packed.cpu().flatten()
    return torch.stack([flat >> 4, flat & 15], dim=1)


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "double quantization"])
def test_nf4_quantization_is_the_kernels(functional, device, weight, nested):
    packed, state = functional.quantize_4bit(weight.to(device), compress_statistics=nested, quant_type="nf4")
    expected, reference = nf4.quantize_4bit(weight, compress_statistics=nested, quant_type="nf4")
    assert packed.numel() == expected.numel() and state.blocksize == reference.blocksize
    torch.testing.assert_close(state.code.cpu(), nf4.NF4, rtol=1e-6, atol=1e-7)
    different = (unpack(packed) != unpack(expected)).float().mean().item()
    print(f"NF4: {different:.1e} of the values differ")
    assert different < 1e-3  # ties between two values
    assert (state.absmax.cpu().float() - reference.absmax.float()).abs().max() <= (1 if nested else 1e-6)


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "double quantization"])
def test_nf4_dequantization_is_the_kernels(functional, device, weight, nested):
    packed, state = functional.quantize_4bit(weight.to(device), compress_statistics=nested, quant_type="nf4")
    found = functional.dequantize_4bit(packed, state).cpu()
    on_cpu = copy.deepcopy(state)
    on_cpu.to("cpu")
    torch.testing.assert_close(found, nf4.dequantize_4bit(packed.cpu(), on_cpu), rtol=2e-3, atol=1e-5)


def test_adamw8bit_is_the_kernels(functional, device):
    """Three steps of 16,384 parameters: moments, scales and parameters."""
    generator = torch.Generator().manual_seed(0)
    size = 16_384
    qmaps = functional.create_dynamic_map(signed=True), functional.create_dynamic_map(signed=False)

    def fresh(place):
        codes = [torch.zeros(size, dtype=torch.uint8, device=place) for _ in range(2)]
        for code, qmap in zip(codes, qmaps, strict=True):
            code.fill_(int(qmap.abs().argmin()))
        scales = [torch.zeros(size // adamw8bit.BLOCK, device=place) for _ in range(2)]
        return codes, [qmap.to(place) for qmap in qmaps], scales

    start = torch.randn(size, generator=generator)
    (ours, p), (theirs, q) = (fresh("cpu"), start.clone()), (fresh(device), start.to(device))
    for step in range(1, 4):
        gradient = torch.randn(size, generator=generator) * 1e-2
        settings = (0.9, 0.999, 0.0, 0.0, 1e-8, step, 1e-3)
        for update, (codes, maps, scales), parameter in (
            (adamw8bit.optimizer_update_8bit_blockwise, ours, p),
            (functional.optimizer_update_8bit_blockwise, theirs, q),
        ):
            g = gradient.to(parameter.device)
            update("adam", g, parameter, *codes, *settings, *maps, *scales, weight_decay=0.01)
    torch.cuda.synchronize()
    for one, two in zip(ours[0], theirs[0], strict=True):
        different = (one != two.cpu()).float().mean().item()
        print(f"8-bit AdamW: {different:.1e} of the moments differ")
        assert different < 1e-2
    for one, two in zip(ours[2], theirs[2], strict=True):
        torch.testing.assert_close(two.cpu(), one, rtol=1e-4, atol=1e-9)
    moved = (p - start).abs().mean()
    assert (q.cpu() - p).abs().mean() < 0.01 * moved
