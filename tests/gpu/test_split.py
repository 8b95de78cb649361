"""A base over two GPUs: not yet measured anywhere."""

import pytest
import torch

from recipe.model.load import load_base, split_devices
from tests.gpu.conftest import skip
from tests.model.test_split import pack, step  # noqa: F401 - a fixture


@pytest.mark.parametrize("recompute", [0, 1])
def test_a_step_over_two_gpus_is_that_of_one(tiny_base, tiny_run, pack, recompute):  # noqa: F811
    if torch.cuda.device_count() < 2:
        skip("there are no two CUDA devices: this was not tried")
    devices = split_devices(torch.device("cuda"), 2)
    one = step(load_base(tiny_base, "int8", devices[0]), tiny_run.lora, pack, recompute)
    two = step(load_base(tiny_base, "int8", devices), tiny_run.lora, pack, recompute)
    assert len({value.device for value in two.values()}) == 2
    for name, value in one.items():
        assert (two[name].cpu() - value.cpu()).norm() <= 1e-2 * value.cpu().norm(), name
