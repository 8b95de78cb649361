"""The chunked loss against torch's cross entropy over all logits, and its memory against the limit."""

import weakref
from collections import Counter

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from recipe.pascal.loss import chunked_nll, token_nll

MB = 10**6


class LiveStorage(TorchDispatchMode):
    """Peak bytes of the storages made inside the block; `inputs` were there before. Works on the meta device too."""

    def __init__(self, *inputs: torch.Tensor) -> None:
        super().__init__()
        self.outside = {tensor.untyped_storage()._cdata for tensor in inputs}
        self.tensors: Counter[int] = Counter()  # how many tensors hold a storage, by its address
        self.live = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.outside:
                storage = tensor.untyped_storage()
                self.hold(storage._cdata, storage.nbytes(), 1)
                weakref.finalize(tensor, self.hold, storage._cdata, storage.nbytes(), -1)
        return out

    def hold(self, address: int, size: int, change: int) -> None:
        before = bool(self.tensors[address])
        self.tensors[address] += change
        self.live += size * (bool(self.tensors[address]) - before)
        self.peak = max(self.peak, self.live)


def inputs(n: int, d: int, v: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(v, d, generator=generator) * 0.3).to(dtype)
    return hidden, weight, torch.randint(0, v, (n,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_loss_and_gradient_equal_cross_entropy(chunk):
    hidden, weight, targets = inputs(64, 24, 301)
    ours = chunked_nll(hidden, weight, targets, chunk)
    expected = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-5)
    our_grad, expected_grad = (torch.autograd.grad(loss / 3, hidden)[0] for loss in (ours, expected))
    torch.testing.assert_close(our_grad, expected_grad, rtol=1e-5, atol=1e-6)


def test_a_vocabulary_of_several_tiles(monkeypatch):
    monkeypatch.setattr("recipe.pascal.loss.VOCABULARY_TILE", 100)
    hidden, weight, targets = inputs(64, 24, 301)
    logits = hidden @ weight.t()
    torch.testing.assert_close(
        chunked_nll(hidden, weight, targets, 50), F.cross_entropy(logits, targets, reduction="sum")
    )
    torch.testing.assert_close(
        token_nll(hidden, weight, targets, 50), F.cross_entropy(logits, targets, reduction="none")
    )


def test_gradient_is_the_functions_own():
    hidden, weight, targets = inputs(6, 5, 11, torch.float64)
    assert torch.autograd.gradcheck(lambda states: chunked_nll(states, weight, targets, 4), (hidden,))


def test_huge_logits_stay_finite_and_a_hopeless_target_costs_what_it_should():
    hidden = torch.tensor([[1000.0]], requires_grad=True)
    weight, targets = torch.tensor([[1.0], [-1.0]]), torch.tensor([1])
    loss = chunked_nll(hidden, weight, targets)
    assert loss.item() == 2000
    assert torch.autograd.grad(loss, hidden)[0].item() == 2


def test_hidden_states_of_another_dtype_get_a_gradient_of_their_own():
    hidden, weight, targets = inputs(8, 4, 9, torch.float64)
    loss = chunked_nll(hidden, weight.float(), targets)
    assert loss.dtype == torch.float32
    assert torch.autograd.grad(loss, hidden)[0].dtype == torch.float64


def test_without_gradients_none_is_computed():
    hidden, weight, targets = inputs(512, 64, 50)
    hidden = hidden.detach()  # as a forward pass under no_grad leaves it
    with LiveStorage(hidden, weight, targets) as tracker:
        chunked_nll(hidden, weight, targets, 4)
    assert 0 < tracker.peak < hidden.untyped_storage().nbytes() / 20


def test_a_weight_that_would_train_is_refused():
    hidden, weight, targets = inputs(2, 3, 4)
    with pytest.raises(ValueError, match="expected a frozen one"):
        chunked_nll(hidden, weight.requires_grad_(), targets)


@pytest.mark.parametrize(("dtype", "least"), [(torch.float16, 50), (torch.float32, 60)])
def test_memory_at_a_real_vocabulary_stays_under_150_mb(dtype, least):
    """2,048 tokens of a 7B model, hidden 4096, vocabulary 32,000, on the device that has shapes and no numbers."""
    hidden = torch.empty(2048, 4096, dtype=dtype, device="meta", requires_grad=True)
    weight = torch.empty(32000, 4096, dtype=dtype, device="meta")
    targets = torch.empty(2048, dtype=torch.int64, device="meta")
    with LiveStorage(hidden, weight, targets) as tracker:
        chunked_nll(hidden, weight, targets).backward()
    assert least * MB < tracker.peak <= 150 * MB, f"{tracker.peak / MB:.0f} MB"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_tracker_sees_the_usual_ways_logits(device):
    """Logits, log-probabilities and the gradients of both; without it the limit above would prove nothing."""
    hidden = torch.zeros(256, 8, device=device, requires_grad=True)
    weight, targets = torch.zeros(32000, 8, device=device), torch.zeros(256, dtype=torch.int64, device=device)
    with LiveStorage(hidden, weight, targets) as tracker:
        F.cross_entropy(hidden @ weight.t(), targets, reduction="sum").backward()
    logits = 256 * 32000 * 4
    assert 3 * logits <= tracker.peak < 5 * logits
