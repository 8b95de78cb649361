"""Variables of accelerate and torchrun change no run."""

import pytest

from recipe import train
from recipe.core.errors import UsageError
from recipe.core.files import sha256
from recipe.core.run import Run
from recipe.training.launch import clear_launcher_variables


def test_accelerates_variables_change_no_bit(tiny_run, trained_once, monkeypatch, capsys):
    for name, value in {"GRADIENT_ACCUMULATION_STEPS": "4", "USE_DEEPSPEED": "true", "USE_FSDP": "true"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    train.run(tiny_run)
    message = capsys.readouterr().err
    assert "ignoring ACCELERATE_GRADIENT_ACCUMULATION_STEPS, " in message and "ACCELERATE_USE_FSDP" in message
    one, two = (sha256(Run.latest(each) / "adapter" / "adapter_model.safetensors") for each in (tiny_run, trained_once))
    assert one == two


def test_torchrun_with_one_process_is_ignored(capsys):
    variables = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    clear_launcher_variables(variables)
    assert variables == {"MASTER_ADDR": "localhost"}
    assert "ignoring LOCAL_RANK, RANK, WORLD_SIZE" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["2", "two", "\x1b[2J"])
def test_several_processes_are_refused(size):
    with pytest.raises(UsageError, match=r"expected one process: start .* without torchrun") as caught:
        clear_launcher_variables({"WORLD_SIZE": size})
    assert str(caught.value).isprintable()


def test_no_launcher_is_silent(capsys):
    clear_launcher_variables({"PATH": "/bin", "RECIPE_PYTHON": "x"})
    assert not capsys.readouterr().err
