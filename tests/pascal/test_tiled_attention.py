"""Attention in blocks of queries against torch's own, at lengths around the borders of the blocks."""

import pytest
import torch
from torch.nn import functional as F

from recipe.pascal.attention import TILED_FROM, causal, expanded
from recipe.pascal.tiled_attention import TILE, tiled_causal
from tests.planning import instruments


def states(heads: int, kv_heads: int, length: int, width: int = 16, dtype=torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(length)
    return [torch.randn(1, h, length, width, dtype=dtype, requires_grad=True) for h in (heads, kv_heads, kv_heads)]


def whole(query, key, value):
    heads = query.shape[1]
    return F.scaled_dot_product_attention(query, expanded(key, heads), expanded(value, heads), is_causal=True)


@pytest.mark.parametrize("length", [1, TILE - 1, TILE, TILE + 1, 3 * TILE + 5])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 6), (6, 2), (4, 1)])
def test_outputs_and_gradients_are_torchs(length, heads, kv_heads):
    inputs = states(heads, kv_heads, length)
    ours, theirs = tiled_causal(*inputs), whole(*inputs)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(theirs, inputs, upstream),
        rtol=1e-4,
        atol=1e-5,
    )


def test_large_scores_do_not_overflow():
    query, key, value = states(2, 2, TILE + 3)
    ours = tiled_causal(300 * query, 300 * key, value)
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours, whole(300 * query, 300 * key, value), rtol=1e-3, atol=1e-3)


def test_gradients_of_steep_scores_are_as_exact_as_their_sum_in_fp32():
    inputs = [10 * each.detach() if number < 2 else each.detach() for number, each in enumerate(states(6, 2, TILE + 3))]
    ours = [each.clone().requires_grad_() for each in inputs]
    exact = [each.double().requires_grad_() for each in inputs]
    upstream = torch.randn(1, 6, TILE + 3, 16)
    found = torch.autograd.grad(tiled_causal(*ours), ours, upstream)
    for one, other in zip(found, torch.autograd.grad(whole(*exact), exact, upstream.double()), strict=True):
        assert (one - other).abs().max() < 2e-4 * other.abs().max()


def test_a_later_key_has_no_influence_however_large_its_score_is():
    query, key, value = states(2, 2, TILE + 3)
    before = tiled_causal(query, key, value)
    with torch.no_grad():
        key[:, :, -1], value[:, :, -1] = 1000 * key[:, :, -1], 1000 * value[:, :, -1]
    after = tiled_causal(query, key, value)
    assert torch.equal(before[:, :, :-1], after[:, :, :-1])
    _, by_key, by_value = torch.autograd.grad(after[:, :, :-1].sum(), [query, key, value])
    assert not by_key[:, :, -1].any() and not by_value[:, :, -1].any()


def test_only_the_inputs_and_the_sums_are_kept_and_the_peak_grows_with_the_length_alone():
    peaks = []
    for length in (512, 1024, 2048):
        inputs = states(4, 2, length)
        kept = instruments.kept_bytes(lambda inputs=inputs: tiled_causal(*inputs).sum(), torch.nn.Module())
        log_sums = 4 * length  # a number for each head and query
        assert kept == (sum(tensor.numel() for tensor in inputs) + log_sums) * 4
        work = lambda inputs=inputs: tiled_causal(*inputs).sum().backward()  # noqa: E731
        work()
        peaks.append(instruments.peak_bytes(work, torch.device("cpu")))
    assert peaks[1] < 2.2 * peaks[0] and peaks[2] < 2.2 * peaks[1]
    assert peaks[2] < 4 * 2048**2  # one head's scores alone would be as much


@pytest.mark.parametrize(("length", "blocks"), [(TILED_FROM - 1, False), (TILED_FROM, True)])
def test_short_conversations_take_torchs_way(length, blocks, monkeypatch):
    taken = []
    monkeypatch.setattr("recipe.pascal.attention.tiled_causal", lambda *a: taken.append(1) or tiled_causal(*a))
    inputs = states(4, 2, length)
    torch.testing.assert_close(causal(*inputs), whole(*inputs))
    assert bool(taken) == blocks
