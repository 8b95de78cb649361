"""The training state on the disk: the same bits back, nothing executed."""

import json

import pytest
import torch

from recipe.core.errors import RecipeError
from recipe.training import state


def optimizer_after_steps(kind: type) -> tuple[torch.optim.Optimizer, torch.nn.Parameter]:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(5, 3))
    optimizer = kind([parameter], lr=0.1)
    for _ in range(3):
        parameter.grad = torch.randn(5, 3)
        optimizer.step()
    return optimizer, parameter


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_optimizer_states_return_bit_identical(kind, tmp_path):
    optimizer, parameter = optimizer_after_steps(kind)
    state.write_state(tmp_path, {"optimizer": optimizer.state_dict()})
    other, twin = optimizer_after_steps(kind)
    other.state.clear()
    other.load_state_dict(state.read_state(tmp_path)["optimizer"])
    torch.manual_seed(7)
    for each, one in ((optimizer, parameter), (other, twin)):
        torch.manual_seed(7)
        one.grad = torch.randn(5, 3)
        each.step()
    assert torch.equal(parameter, twin)


def test_every_kind_of_value_returns_as_it_was(tmp_path):
    shared = torch.arange(6, dtype=torch.uint8)
    values = {
        0: {"betas": (0.9, 0.999), "lr": 1e-3 / 3, "nothing": None, "on": True},
        "tensors": [shared, shared, torch.tensor(2.5, dtype=torch.float64), torch.zeros(0)],
        "not finite": [float("inf"), -float("inf")],
    }
    state.write_state(tmp_path, values)
    back = state.read_state(tmp_path)
    assert back.keys() == values.keys() and back[0] == values[0] and back["not finite"] == values["not finite"]
    assert isinstance(back[0]["betas"], tuple)
    for one, two in zip(back["tensors"], values["tensors"], strict=True):
        assert one.dtype == two.dtype and torch.equal(one, two)
    assert (tmp_path / state.TENSORS).stat().st_mode & 0o777 == (tmp_path / state.VALUES).stat().st_mode & 0o777


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"eval": "1"}', '{"tensor": "none"}', '{"dict": [["a"]]}', '{"a": 1, "b": 2}', "[" * 9999]
)
def test_a_strange_state_is_one_sentence(tmp_path, text):
    state.write_state(tmp_path, {"a": torch.zeros(1)})
    (tmp_path / state.VALUES).write_text(text)
    with pytest.raises(RecipeError, match="has no readable training_state"):
        state.read_state(tmp_path)


def test_a_pickle_in_place_of_the_tensors_is_not_opened(tmp_path):
    class Canary:
        def __reduce__(self):
            return (tmp_path.joinpath("executed").touch, ())

    torch.save({"optimizer": Canary()}, tmp_path / "optimizer.pt")
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["optimizer.pt"]'
    (tmp_path / "optimizer.pt").rename(tmp_path / state.TENSORS)
    (tmp_path / state.VALUES).write_text("{}")
    with pytest.raises(RecipeError):
        state.read_state(tmp_path)
    assert not (tmp_path / "executed").exists()
