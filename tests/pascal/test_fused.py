"""The fused norms, MLPs and rotations against transformers' own, in value, in gradient and in what is kept for it."""

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

from recipe.pascal.fused import apply_rotary, fuse_layers, rms_norm, swiglu
from tests.planning import instruments

ROWS, WIDTH, INNER = 7, 24, 40


def pair(module: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """A frozen module of transformers with drawn weights, and a fused copy."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=0.5, std=0.3)
    module = module.to(dtype).requires_grad_(False)
    ours = copy.deepcopy(module)
    fuse_layers(*([ours] if isinstance(ours, kind) else [] for kind in (LlamaRMSNorm, LlamaMLP, LlamaAttention)))
    return module, ours


def modules() -> list[nn.Module]:
    config = LlamaConfig(hidden_size=WIDTH, intermediate_size=INNER)
    return [LlamaRMSNorm(WIDTH, eps=1e-5), LlamaMLP(config)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("number", [0, 1], ids=["norm", "mlp"])
def test_values_are_equal_to_the_bit_and_gradients_within_rounding(number, dtype):
    theirs, ours = pair(modules()[number], dtype)
    x = (3 * torch.randn(2, ROWS, WIDTH)).to(dtype).requires_grad_()
    y, expected = ours(x), theirs(x)
    assert y.dtype == expected.dtype and torch.equal(y, expected)
    upstream = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, x, upstream)
    (wanted,) = torch.autograd.grad(expected, x, upstream)
    assert grad.dtype == wanted.dtype
    torch.testing.assert_close(grad, wanted, **({"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}))


def test_gradients_are_those_of_finite_differences():
    x, gate, up = (torch.randn(3, 6, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(swiglu, (gate, up))
    cos, sin = (torch.randn(1, 3, 4, dtype=torch.float64).repeat(1, 1, 2) for _ in range(2))
    query = torch.randn(1, 2, 3, 8, dtype=torch.float64, requires_grad=True)
    key = torch.randn(1, 1, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, k: apply_rotary(q, k, cos, sin), (query, key))
    upstream = torch.randn(3, 6)
    (grad,) = torch.autograd.grad(rms_norm(x.float(), torch.ones(6), 1e-6), x, upstream)
    step, base = 1e-4, x.detach()
    for row, column in ((0, 0), (1, 3), (2, 5)):
        moved = [base.clone(), base.clone()]
        for tensor, sign in zip(moved, (1, -1), strict=True):
            tensor[row, column] += sign * step
        above, below = ((t / t.square().mean(-1, keepdim=True).add(1e-6).sqrt() * upstream).sum() for t in moved)
        assert grad[row, column].item() == pytest.approx((above - below).item() / (2 * step), rel=1e-3, abs=1e-5)


def test_a_rotation_is_transformers_and_its_own_inverse_backwards():
    query, key = torch.randn(1, 6, 9, 16, requires_grad=True), torch.randn(1, 2, 9, 16, requires_grad=True)
    angles = torch.randn(1, 9, 8).repeat(1, 1, 2)
    ours = apply_rotary(query, key, angles.cos(), angles.sin())
    theirs = apply_rotary_pos_emb(query, key, angles.cos(), angles.sin())
    torch.testing.assert_close(ours, theirs)
    (grad,) = torch.autograd.grad(ours[0], query, ours[0].detach())
    torch.testing.assert_close(grad, query)  # turned back


def test_an_attention_turns_by_ours_and_transformers_own_function_stays():
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, attn_implementation="eager")
    theirs, ours = pair(LlamaAttention(config, 0), torch.float32)
    x, angles = torch.randn(1, ROWS, 32, requires_grad=True), torch.randn(1, ROWS, 4).repeat(1, 1, 2)
    given = {"position_embeddings": (angles.cos(), angles.sin())}
    causal = torch.full((ROWS, ROWS), float("-inf")).triu(1)[None, None]
    y, expected = ours(x, **given, lengths=[ROWS])[0], theirs(x, **given, attention_mask=causal)[0]
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), x), torch.autograd.grad(expected.sum(), x), rtol=1e-4, atol=1e-5
    )
    assert modeling_llama.apply_rotary_pos_emb is apply_rotary_pos_emb is not apply_rotary
    graph, seen = [y.grad_fn], set()
    while graph:
        node = graph.pop()
        seen.add(type(node).__name__)
        graph += [after for after, _ in node.next_functions if after]
    assert "_RotationBackward" in seen


def test_what_is_kept_is_one_input_of_a_norm_and_two_of_the_mlp():
    numbers = 2 * ROWS * WIDTH * 4
    for module, kept in ((modules()[0], numbers + 2 * ROWS * 4), (modules()[1], 2 * 2 * ROWS * INNER * 4)):
        theirs, ours = pair(module, torch.float32)
        x = torch.randn(2, ROWS, WIDTH, requires_grad=True)
        assert instruments.kept_bytes(lambda ours=ours, x=x: ours(x).sum(), ours) == kept
        assert instruments.kept_bytes(lambda theirs=theirs, x=x: theirs(x).sum(), theirs) > kept


def test_a_norm_that_is_trained_is_refused():
    with pytest.raises(ValueError, match="norm's weight requires a gradient, expected a frozen one"):
        rms_norm(torch.randn(2, 4), torch.ones(4, requires_grad=True), 1e-6)


def test_without_gradients_nothing_is_kept():
    with torch.no_grad():
        y = swiglu(torch.randn(2, 4, requires_grad=True), torch.randn(2, 4))
    assert y.grad_fn is None
