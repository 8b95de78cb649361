"""fp16 sums: right products from a library that behaves as documented, the real one found and asked, and the error."""

import copy
import math
import re
import statistics
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from recipe.pascal import constants, gemm, probe
from recipe.pascal.int8 import Int8Linear, dequantize, quantize
from tests.pascal import cublas, fp16
from tests.planning import instruments

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
SMOL = ROOT / "weights/smollm2-135m-instruct"


def halves(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half()


def assert_exact(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, chunk: int) -> None:
    """To the bit what the arithmetic gives on the logical matrices, and near the exact product."""
    rows = x.reshape(-1, x.shape[-1]).numpy()
    assert y.shape == (*x.shape[:-1], weight.shape[1]) and y.dtype == torch.float16
    got = y.reshape(-1, weight.shape[1]).numpy()
    assert np.array_equal(got, fp16.matmul(rows, weight.numpy(), chunk))
    assert fp16.error(got, rows, weight.numpy()) < 5e-3


SHAPES = [  # M, in, out, chunk
    (5, 24, 7, 8),
    (3, 43, 11, 16),  # 43 = 2 x 16 + 11, 11 is less than a chunk
    (1, 40, 9, 16),
    (6, 33, 1, 32),
    (4, 1, 3, 8),
    (1, 1, 1, 8),
    (7, 16, 16, 16),
    (9, 5, 64, 512),
]


@pytest.mark.parametrize(("m", "fan_in", "fan_out", "chunk"), SHAPES)
def test_both_directions_from_one_row_major_weight(library, m, fan_in, fan_out, chunk):
    weight = halves(fan_out, fan_in)
    x, grad = halves(m, fan_in, seed=1), halves(m, fan_out, seed=2)
    assert_exact(gemm.matmul(x, weight.t(), chunk), x, weight.t(), chunk)
    assert_exact(gemm.matmul(grad, weight, chunk), grad, weight, chunk)


class AddInPlace(torch.autograd.Function):
    """What lora.py does to the outputs of frozen layers: half arithmetic of a CPU has no matmul, but it adds."""

    @staticmethod
    def forward(ctx, *outputs):
        ctx.mark_dirty(*outputs)
        return tuple(output.add_(1) for output in outputs)

    @staticmethod
    def backward(ctx, *grads):
        return grads


@pytest.mark.parametrize("count", [1, 2])
def test_adapters_can_be_added_in_place_to_the_outputs_of_layers(library, count):
    layer = Int8Linear(halves(6, 8))
    layer.matmul = gemm.matmul
    x = halves(1, 5, 8).requires_grad_()
    outputs = AddInPlace.apply(*(layer(x) for _ in range(count)))
    sum(output.float().sum() for output in outputs).backward()
    assert x.grad is not None


def test_what_k_leaves_over_is_one_more_call(library):
    gemm.matmul(halves(2, 11008), halves(3, 11008).t(), 1024)
    assert library.calls == [{"m": 3, "n": 2, "k": 1024, "batch": 10}, {"m": 3, "n": 2, "k": 768, "batch": 1}]


def test_views_and_leading_dimensions(library):
    weight = halves(12, 40)[3:]  # begins inside its storage
    x = halves(2, 3, 40)
    assert_exact(gemm.matmul(x, weight.t(), 16), x, weight.t(), 16)
    turned = halves(40, 6).t()
    assert not turned.is_contiguous()
    assert_exact(gemm.matmul(turned, weight.t(), 16), turned, weight.t(), 16)
    every_other = halves(5, 80)[:, ::2]
    assert_exact(gemm.matmul(every_other, weight.t(), 16), every_other, weight.t(), 16)
    one = halves(40)
    assert_exact(gemm.matmul(one, weight.t(), 16), one, weight.t(), 16)
    assert gemm.matmul(halves(0, 40), weight.t()).shape == (0, 9)


def test_more_rows_than_are_multiplied_at_a_time(library, monkeypatch):
    monkeypatch.setattr(gemm, "GEMM_ROWS", 4)
    x, weight = halves(11, 20), halves(6, 20)
    assert_exact(gemm.matmul(x, weight.t(), 8), x, weight.t(), 8)


def test_chunks_are_added_in_fp32(library):
    """2048 + 1 + 1 + 1 + 1 is 2048 in fp16: the next number there is 2050."""
    x, weight = torch.tensor([[2048.0, 1, 1, 1, 1]]).half(), torch.ones(1, 5).half()
    assert gemm.matmul(x, weight.t(), chunk=1).item() == 2052
    assert gemm.matmul(x, weight.t(), chunk=5).item() == 2048


def test_the_memory_is_the_plans(library):
    x, weight = halves(600, 64), halves(48, 64)
    chunk = 16
    peak = instruments.peak_bytes(lambda: gemm.matmul(x, weight.t(), chunk), CPU)
    assert peak == constants.partial_bytes(600, 64, 48, chunk) + 600 * 48 * 2
    assert constants.partial_bytes(2048, 11008, 4096, 1024) == 11 * 512 * 4096 * 2


@pytest.mark.parametrize(
    ("x", "weight", "said"),
    [
        (torch.zeros(2, 4), halves(4, 3), "expected fp16"),
        (halves(2, 4), torch.zeros(4, 3), "expected fp16"),
        (halves(2, 5), halves(4, 3), "expected fp16"),
        (halves(2, 4), halves(4, 6)[:, ::2], "strided"),
        (halves(2, 4), halves(4, 1).expand(4, 3), "strided"),
        (halves(2, 4), halves(4, 3), "expected tensors on a GPU, found them on cpu"),
    ],
)
def test_other_tensors_are_refused_before_any_address_is_taken(x, weight, said):
    with pytest.raises(ValueError, match=said):
        gemm.matmul(x, weight)


@pytest.mark.parametrize("status", [cublas.NOT_SUPPORTED, 13])
def test_a_status_is_a_sentence(library, status):
    library.status = status
    with pytest.raises(RuntimeError, match=rf"^cuBLAS returned status {status} .*4 x 8 x 3.*expected 0; use fp32"):
        gemm.matmul(halves(4, 8), halves(3, 8).t())


def test_torchs_own_cublas_is_found_and_answers(monkeypatch):
    """The real library, without a card: no handle, so it says that it was not initialised."""
    if torch.version.cuda is None:
        pytest.skip("this torch has no cuBLAS")
    monkeypatch.setattr(gemm, "cublas_handle", lambda device: None)
    with pytest.raises(RuntimeError, match=f"status {cublas.NOT_INITIALIZED} "):
        gemm.matmul(halves(4, 8), halves(3, 8).t())


def test_a_torch_without_cublas_is_said(monkeypatch):
    monkeypatch.setattr(
        Path, "read_text", lambda self: "7f00-7f01 r-xp 0 00:00 1 /lib/libcublasLt.so.11\n7f02-7f03 rw-p 0"
    )
    gemm.cublas_function.cache_clear()
    with pytest.raises(RuntimeError, match=r"no libcublas\.so"):
        gemm.cublas_function()


def header(package: str, name: str) -> str:
    path = Path(torch.__file__).parents[1] / "nvidia" / package / "include" / name
    if not path.is_file():
        pytest.skip(f"this torch came without {name}")
    return path.read_text()


def test_numbers_and_signature_are_the_headers():
    api, types = header("cublas", "cublas_api.h"), header("cuda_runtime", "library_types.h")
    names = {"CUBLAS_OP_N": gemm.OP_N, "CUBLAS_OP_T": gemm.OP_T, "CUBLAS_COMPUTE_16F": gemm.COMPUTE_16F}
    names |= {"CUBLAS_GEMM_DEFAULT": gemm.GEMM_DEFAULT, "CUDA_R_16F": gemm.R_16F}
    for name, value in names.items():
        found = re.search(rf"\b{name}\s*=\s*(-?\d+)", api + types)
        assert found and int(found[1]) == value, name
    declared = re.search(r"CUBLASAPI cublasStatus_t \w+ cublasGemmStridedBatchedEx\((.*?)\);", api, re.DOTALL)
    parameters = re.sub(r"/\*.*?\*/", "", declared[1]).split(",")
    kinds = ["p" if "*" in p or "cublasHandle_t" in p else "q" if "long long" in p else "i" for p in parameters]
    ours = {gemm._pointer: "p", gemm._long: "q", gemm._int: "i"}
    for signature in (gemm.SIGNATURE, cublas.GEMM_STRIDED_BATCHED_EX):
        assert [ours[each] for each in signature._argtypes_] == kinds and signature._restype_ is gemm._int


class Frozen(nn.Module):
    """Two int8 layers of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.up = Int8Linear(torch.randn(48, 32, generator=torch.Generator().manual_seed(3)) * 0.1)
        self.down = Int8Linear(torch.randn(32, 48, generator=torch.Generator().manual_seed(4)) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x))


def test_a_models_forward_and_gradients_are_those_of_fp32_sums(library):
    model = Frozen()
    gemm.accumulate_in_fp16(model, gemm.int8_shapes(model), chunk=8)
    model = copy.deepcopy(model)
    x = halves(2, 5, 32).requires_grad_()
    y = model(x)
    assert len(library.calls) == 2
    upstream = halves(2, 5, 32, seed=5)
    y.backward(upstream)
    assert len(library.calls) == 4
    exact = x.detach().float().requires_grad_()
    up, down = (dequantize(each.weight, each.scale, torch.float32) for each in (model.up, model.down))
    expected = exact @ up.t() @ down.t()
    expected.backward(upstream.float())
    for one, two in ((y, expected), (x.grad, exact.grad)):
        assert (one.float() - two).norm() / two.norm() < probe.TOLERANCE[torch.float16]


def test_only_the_chosen_shapes_change_and_only_in_that_model(library):
    model, other = Frozen(), Frozen()
    assert gemm.int8_shapes(model) == {(32, 48), (48, 32)}
    gemm.accumulate_in_fp16(model, {(32, 48)}, chunk=8)
    model.up(halves(1, 32))
    assert library.calls.pop()["batch"] == 4 and not library.calls
    assert model.down.matmul is other.up.matmul is torch.matmul
    gemm.accumulate_in_fp16(model, ())
    assert model.up.matmul is torch.matmul
    assert model.up(torch.ones(1, 32)).dtype == torch.float32


def rounded(value: Fraction) -> Fraction:
    """To the nearest half, ties to even: whole multiples of its last place, 2^-24 where it is subnormal."""
    exponent = max(math.frexp(float(value))[1] - 1, -14)
    place = Fraction(2) ** (exponent - 10)
    return round(value / place) * place


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4])
def test_the_emulation_rounds_once_per_addend(size):
    """Against exact fractions, from ordinary numbers down to subnormal sums."""
    x, w = (np.random.default_rng(seed).standard_normal((40, 50)) * size for seed in range(2))
    x, w = x.astype(np.float16), w.astype(np.float16)
    found = fp16.partial(x[:, None, :], w[:, :, None])[:, 0, 0]
    for row, a, b in zip(found, x, w, strict=True):
        total = Fraction(0)
        for one, two in zip(a, b, strict=True):
            total = rounded(total + Fraction(float(one)) * Fraction(float(two)))
        assert Fraction(float(row)) == total


def test_a_sum_beyond_the_halves_is_infinite():
    assert np.isinf(fp16.partial(np.full((1, 2), 60000, np.float16), np.ones((2, 1), np.float16)).item())


@pytest.mark.parametrize(
    ("k", "facts"),
    [
        (4096, {256: 2.4e-3, 512: 3.4e-3, 1024: 4.4e-3, None: 1.0e-2}),
        (11008, {256: 2.1e-3, 512: 3.2e-3, 1024: 4.3e-3, None: 1.7e-2}),
    ],
)
def test_the_error_grows_with_the_chunk(k, facts):
    """On data like a 7B's; the figures are those of an emulation that was written apart from this one."""
    found = {chunk: [] for chunk in facts}
    for seed in range(3):
        x, w = fp16.outliers(24, k, 24, seed)
        for chunk in facts:
            found[chunk].append(fp16.error(fp16.matmul(x, w, chunk), x, w))
    errors = {chunk: statistics.mean(each) for chunk, each in found.items()}
    print(f"K = {k}:", {chunk: f"{error:.1e}" for chunk, error in errors.items()})
    assert list(errors.values()) == sorted(errors.values())
    for chunk, expected in facts.items():
        assert errors[chunk] == pytest.approx(expected, rel=0.25)
    assert errors[constants.SPLIT_K] < 0.8 * probe.TOLERANCE[torch.float16]


@pytest.fixture(scope="module")
def activations() -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Of a real model on a real text, for some linear layers: int8 weight, input, gradient of the mean loss."""
    if not (SMOL / "manifest.json").is_file():
        pytest.skip(f"{SMOL} is not there: the error on real activations was not measured")
    from recipe.model.load import load_base, load_tokenizer

    model = load_base(SMOL, "fp32", CPU).requires_grad_(False)  # int8 would leave a copy beside the weights
    ids = load_tokenizer(SMOL)((ROOT / "LICENSE").read_text())["input_ids"][:384]
    seen: dict[str, list[torch.Tensor]] = {}

    def watch(name: str, layer: nn.Linear) -> None:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            seen[name] = [dequantize(*quantize(layer.weight), torch.float16), inputs[0].detach()[0]]
            output.register_hook(lambda grad: seen[name].append(grad[0]))

        layer.register_forward_hook(hook)

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and re.search(r"\.(0|1|10|20|29)\.", name):
            watch(name, layer)
    embedded = model.get_input_embeddings()(torch.tensor([ids])).requires_grad_()
    logits = model.lm_head(model.model(inputs_embeds=embedded).last_hidden_state)[0]
    nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).backward()
    return {name: tuple(tensors) for name, tensors in seen.items()}


CHUNKS = (128, 256, 512, 1024, None)


def errors_of(x: torch.Tensor, weight: torch.Tensor) -> list[float]:
    """For every chunk, over some rows, the first token's with its massive activations among them, and columns."""
    a, b = x[:: len(x) // 24].half().numpy(), weight[:, :: -(-weight.shape[1] // 32)].numpy()
    return [fp16.error(fp16.matmul(a, b, chunk), a, b) for chunk in CHUNKS]


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_error_on_real_activations(activations, direction):
    """`pytest -s` prints the table. Gradients are multiplied as fp16 training multiplies them (GradScaler: 2^16)."""
    table = []
    for weight, x, grad in activations.values():
        table.append(errors_of(x, weight.t()) if direction == "forward" else errors_of(grad * 2**16, weight))
    median, worst = (
        dict(zip(CHUNKS, map(of, zip(*table, strict=True)), strict=True)) for of in (statistics.median, max)
    )
    for name, row in (("median", median), ("worst", worst)):
        print(f"{direction}, {name} of {len(table)} layers:", {chunk: f"{error:.1e}" for chunk, error in row.items()})
    assert median[128] < median[256] < median[512] <= median[1024] <= median[None]
    assert worst[constants.SPLIT_K] < probe.TOLERANCE[torch.float16]
    assert median[constants.SPLIT_K] < 0.7 * probe.TOLERANCE[torch.float16]


@pytest.mark.slow
def test_gradients_need_the_loss_scale(activations):
    """Unscaled they are subnormal, and then no chunk is small enough."""
    weight, _, grad = activations["model.layers.29.self_attn.o_proj"]
    bare, scaled = errors_of(grad, weight), errors_of(grad * 2**16, weight)
    assert bare[0] > 2 * scaled[0]
