"""What torch cannot make deterministic is named, in torch's own words; on a CPU there is nothing to name."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from recipe import train
from recipe.core.run import Run
from recipe.training.determinism import deterministic

# As torch 2.0.1 says it on a GPU, in scaled_dot_product_attention and in a matmul without a workspace setting.
ATTENTION = "Memory Efficient attention is a non-deterministic algorithm. To explicitly disable Memory Efficient"
CUBLAS = (
    "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or \n"
    "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic because \n"
    "it uses CuBLAS and you have CUDA >= 10.2."
)


def test_an_operation_without_a_deterministic_form_is_named_once(recwarn):
    with deterministic(True) as found:
        assert torch.are_deterministic_algorithms_enabled()
        for _ in range(3):
            torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
        warnings.warn(ATTENTION, stacklevel=1)
        warnings.warn(CUBLAS, stacklevel=1)
    assert found == {"put_", "Memory Efficient attention", "cuBLAS"}
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_torch_says_once_a_process_is_named_for_every_run():
    for _ in range(2):
        with deterministic(True) as found:
            assert torch.is_warn_always_enabled()  # the kernels of attention warn by TORCH_WARN_ONCE
            warnings.warn(ATTENTION, stacklevel=1)
        assert found == {"Memory Efficient attention"}
    assert not torch.is_warn_always_enabled()


def test_other_warnings_are_shown_and_not_collected():
    with pytest.warns(UserWarning, match="something else"), deterministic(True) as found:
        warnings.warn("something else", stacklevel=1)
    assert not found


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_torch_is_as_before_after_an_error(error):
    with pytest.raises(error), deterministic(True):
        raise error
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_on_a_cpu_changes_no_setting_and_names_nothing(tiny_run):
    manifest = train.run(tiny_run)
    assert manifest["results"]["nondeterministic"] == []
    on_disk = json.loads((Path(Run.latest(tiny_run)) / "manifest.json").read_text())
    assert on_disk["hardware"]["cpu"] and on_disk["results"]["threads"] == torch.get_num_threads()
