"""Stop requests: each signal saves and ends the run, whoever closed the terminal; a locked run is refused."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipe import train
from recipe.core import config as configs
from recipe.core.cli import INTERRUPTED, entry
from recipe.core.errors import RecipeError
from recipe.core.files import lock_file, sha256
from recipe.core.run import Run
from recipe.training.resume import list_checkpoints
from recipe.training.signals import StopRequest

ROOT = Path(__file__).parents[2]


def start(forks, config, tmp_path: Path) -> int:
    """The id of a process of its own that trains `config`, once it has logged three steps."""
    file = tmp_path / "run.toml"
    file.write_text(configs.dump(config), encoding="utf-8")
    (pid,) = forks.start(tmp_path, [["--config", str(file)]])
    metrics = Run.latest(config) / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline and not forks.ended()
        time.sleep(0.02)
    return pid


@pytest.fixture
def long_run(tiny_run):
    settings = dataclasses.replace(tiny_run.train, epochs=40.0, save_steps=1000, eval_steps=0)
    return dataclasses.replace(tiny_run, train=settings)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=["SIGHUP", "SIGTERM"])
def test_a_signal_saves_and_stops(forks, long_run, tmp_path, number):
    pid = start(forks, long_run, tmp_path)
    os.kill(pid, number)
    if number == signal.SIGHUP:
        os.kill(pid, number)  # a terminal that closes may send it twice
    codes, _, (message,) = forks.wait()
    assert codes == [INTERRUPTED] and f"{number.name}: saved after step" in message
    assert "Traceback" not in message
    assert len(list_checkpoints(Run.latest(long_run) / "checkpoints")) == 1


def test_ctrl_c_saves_although_the_reader_of_the_messages_is_gone(forks, long_run, tmp_path):
    """As in `make train 2>&1 | tee log`: Ctrl-C ends tee too."""
    os.mkfifo(tmp_path / "0.txt")
    reader = os.open(tmp_path / "0.txt", os.O_RDONLY | os.O_NONBLOCK)
    pid = start(forks, long_run, tmp_path)
    assert b"load " in os.read(reader, 1 << 16)
    os.close(reader)
    os.kill(pid, signal.SIGINT)
    forks.wait()
    assert len(list_checkpoints(Run.latest(long_run) / "checkpoints")) == 1
    assert not (Run.latest(long_run) / "manifest.json").exists()


def test_a_second_process_on_a_run_is_refused(forks, long_run, tmp_path, capsys):
    pid = start(forks, long_run, tmp_path)
    assert entry(lambda: train.main(["--config", str(tmp_path / "run.toml")])) == 1
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "another process trains in" in sentence and "wait for it to end, or stop it" in sentence
    os.kill(pid, signal.SIGKILL)  # the lock ends with its owner, even with one that is killed
    assert forks.wait()[0] == [-signal.SIGKILL]
    with lock_file(Run.latest(long_run) / ".lock", "still locked"):
        pass


def test_a_swallowed_ctrl_c_while_modules_load_stops_the_run(tiny_run, monkeypatch):
    from recipe.model import load

    real = load.default_device

    def swallow():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        except KeyboardInterrupt:
            pass  # as imports of C libraries do
        return real()

    monkeypatch.setattr(load, "default_device", swallow)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train.run(tiny_run)
    assert not (Run.latest(tiny_run) / "metrics.jsonl").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_time_limit_saves_and_the_next_run_finishes(tiny_run, trained_once, monkeypatch, capsys):
    """The clock is replaced: the limit passes during the third step, so the second is saved."""
    limited = dataclasses.replace(tiny_run, train=dataclasses.replace(tiny_run.train, max_minutes=5.0, save_steps=100))
    metrics = Run.latest(limited) / "metrics.jsonl"
    with monkeypatch.context() as patch:
        real = time.monotonic
        late = lambda: real() + (600 if metrics.is_file() and metrics.read_text().count("\n") >= 2 else 0)  # noqa: E731
        patch.setattr("recipe.training.signals.time.monotonic", late)
        with pytest.raises(KeyboardInterrupt):
            train.run(limited)
    assert "train.max_minutes: saved after step 2 of " in capsys.readouterr().err
    train.run(dataclasses.replace(limited, train=dataclasses.replace(limited.train, max_minutes=0.0)))
    one, two = (sha256(Run.latest(each) / "adapter" / "adapter_model.safetensors") for each in (limited, trained_once))
    assert one == two


def test_no_limit_and_no_signal_is_no_request():
    with StopRequest() as stop:
        stop.raise_if_signaled()
        assert not stop.reason
    assert StopRequest(max_minutes=1e-9).reason == "train.max_minutes"


def test_nohup_stays_deaf_to_sighup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.reason
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_lock_is_held_by_one_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; from recipe.core.files import lock_file\n"
        "with lock_file(Path(sys.argv[1]), 'busy'): print('locked', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "new" / ".lock")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(RecipeError, match="busy"), lock_file(tmp_path / "new" / ".lock", "busy"):
            pass
        process.kill()
    with lock_file(tmp_path / "new" / ".lock", "busy"):
        pass
