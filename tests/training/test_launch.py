"""Variables of accelerate and torchrun change no run."""

import pytest

from recipe import train
from recipe.core import text
from recipe.core.errors import UsageError
from recipe.core.files import sha256
from recipe.core.run import Run
from recipe.training.launch import Launch, read_launch


def test_accelerates_variables_change_no_bit(tiny_run, trained_once, monkeypatch, capsys):
    for name, value in {"GRADIENT_ACCUMULATION_STEPS": "4", "USE_DEEPSPEED": "true", "USE_FSDP": "true"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    train.run(tiny_run)
    message = capsys.readouterr().err
    assert "ignoring ACCELERATE_GRADIENT_ACCUMULATION_STEPS, " in message and "ACCELERATE_USE_FSDP" in message
    one, two = (sha256(Run.latest(each) / "adapter" / "adapter_model.safetensors") for each in (tiny_run, trained_once))
    assert one == two


TORCHRUN = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def torchrun(rank: int, size: int, local_rank: int, local_size: int, **others: str) -> dict[str, str]:
    """What torchrun puts into the environment of a process."""
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_size}
    return {name: str(value) for name, value in place.items()} | TORCHRUN | others


@pytest.fixture
def unmuted(monkeypatch):
    monkeypatch.setattr(text, "_muted_as", "")


def test_torchrun_with_one_process_is_ignored(capsys):
    variables = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    assert read_launch(variables) == Launch()
    assert variables == {"MASTER_ADDR": "localhost"}
    assert "ignoring LOCAL_RANK, RANK, WORLD_SIZE" in capsys.readouterr().err


def test_a_process_of_several_sees_one_gpu_and_talks_on_this_machine(unmuted, capsys):
    variables = torchrun(1, 2, 1, 2)
    assert read_launch(variables) == Launch(1, 2, 1, 2)
    assert variables == TORCHRUN | {
        "CUDA_VISIBLE_DEVICES": "1",
        "NCCL_P2P_DISABLE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    text.say("a message")
    text.say("error: a failure", error=True)
    assert capsys.readouterr().err == "rank 1: error: a failure\n"


def test_on_several_machines_the_network_and_the_users_choices_stay(unmuted):
    variables = torchrun(2, 4, 0, 2, CUDA_VISIBLE_DEVICES="5,7", NCCL_P2P_DISABLE="0")
    assert read_launch(variables) == Launch(2, 4, 0, 2)
    assert variables == TORCHRUN | {"CUDA_VISIBLE_DEVICES": "5", "NCCL_P2P_DISABLE": "0"}


def test_a_gpu_too_few_is_one_sentence(unmuted):
    with pytest.raises(UsageError, match="found 2 processes on a machine whose CUDA_VISIBLE_DEVICES names 1 GPUs"):
        read_launch(torchrun(1, 2, 1, 2, CUDA_VISIBLE_DEVICES="3"))


@pytest.mark.parametrize("change", [{"WORLD_SIZE": "two"}, {"RANK": "2"}, {"LOCAL_RANK": "-1"}, {"MASTER_PORT": ""}])
def test_variables_that_torchrun_does_not_set_are_refused(unmuted, change):
    with pytest.raises(UsageError, match=r"expected what torchrun sets: start several processes by make train GPUS=2"):
        read_launch(torchrun(0, 2, 0, 2) | change)


@pytest.mark.parametrize("size", ["2", "two", "\x1b[2J"])
def test_several_processes_without_their_places_are_refused(size):
    with pytest.raises(UsageError, match=r"expected what torchrun sets") as caught:
        read_launch({"WORLD_SIZE": size})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("accumulation", "size", "fewer"), [(2, 4, 2), (16, 3, 2), (15, 4, 3), (1, 2, 1)])
def test_packs_that_cannot_be_dealt_evenly_are_refused(accumulation, size, fewer):
    Launch(size=fewer).check_steps(accumulation)
    with pytest.raises(UsageError, match=rf"is {accumulation}, expected a multiple of the {size} .*GPUS={fewer}$"):
        Launch(size=size).check_steps(accumulation)


def test_several_processes_for_a_split_base_are_refused():
    Launch(size=2).check_split(1)
    Launch().check_split(2)
    with pytest.raises(UsageError, match=r"base\.split is 2 and 4 processes were started, expected one process"):
        Launch(size=4).check_split(2)


def test_no_launcher_is_silent(capsys):
    assert read_launch({"PATH": "/bin", "RECIPE_PYTHON": "x"}) == Launch()
    assert not capsys.readouterr().err
