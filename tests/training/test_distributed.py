"""One run by one, two and four processes on a CPU, over gloo: the same run, the same curve, the same end."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from recipe import convert
from recipe.core import config as configs
from recipe.core.cli import INTERRUPTED
from recipe.core.config import Base, Config
from recipe.core.files import sha256
from recipe.core.lineage import verify_all
from recipe.core.manifest import read_manifest, write_manifest
from recipe.core.run import Run
from recipe.model.adapter import ADAPTER_FILE
from tests.conftest import tiny_config
from tests.forks import free_port

ROOT = Path(__file__).parents[2]
STEPS = 5
PLACES = ("weights", "data")  # of base and corpus in a working folder


@pytest.fixture(scope="module")
def config(tiny_base, tiny_corpus, tmp_path_factory):
    """A run of 5 steps of 4 packs, with dropout."""
    folder = tmp_path_factory.mktemp("distributed")
    config = tiny_config(tiny_base, tiny_corpus, folder / "1" / "runs")
    settings = dataclasses.replace(config.train, gradient_accumulation_steps=4, eval_steps=2, keep_checkpoints=99)
    return dataclasses.replace(config, train=settings)


def write(config, folder: Path, **fields) -> list[str]:
    """The arguments that train `config` with its runs in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(config, runs=str(folder / "runs"), train=dataclasses.replace(config.train, **fields))
    file = folder / "run.toml"
    file.write_text(configs.dump(config), encoding="utf-8")
    return ["--config", str(file)]


def opened(folder: Path) -> Run:
    return Run((folder / "runs" / "tiny" / "latest").resolve())


@pytest.fixture(scope="module")
def runs(config, forks, tmp_path_factory) -> dict[int, Run]:
    """The run as trained by 1, 2 and 4 processes."""
    out = {}
    for size in (1, 2, 4):
        folder = tmp_path_factory.mktemp(f"by{size}")
        codes, _, messages = forks.run(folder, [write(config, folder)] * size)
        assert codes == [0] * size, messages
        out[size] = opened(folder)
        if size > 1:
            assert f"{size} processes share the packs of each step" in messages[0]
            assert "trained 5 steps" in messages[0] and not any(messages[1:]), "only the first process speaks"
    return out


def curve(run: Run) -> list[dict]:
    """The rows of metrics.jsonl without those numbers that depend on the machine."""
    names = ("step", "loss", "eval_loss", "grad_norm", "learning_rate")
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{name: row[name] for name in names if name in row} for row in rows]


@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_processes_is_the_same_run(runs, size):
    one, many = runs[1], runs[size]
    assert many.folder.name == one.folder.name, "the run's id"
    expected, found = read_manifest(one.folder), read_manifest(many.folder)
    assert found["results"]["processes"] == size and expected["results"]["processes"] == 1
    for key in ("steps", "packs", "trained_tokens", "adapter_step"):
        assert found["results"][key] == expected["results"][key]
    assert found["inputs"] == expected["inputs"] and found["config"] == expected["config"]
    assert len(curve(one)) == STEPS + 3
    assert curve(many) == [pytest.approx(row, rel=1e-6) for row in curve(one)]
    first, second = (load_file(run.adapter / ADAPTER_FILE) for run in (one, many))
    for name, tensor in first.items():
        assert (tensor - second[name]).abs().max() < 1e-4 * tensor.abs().max()
    assert verify_all(many.folder) == []


def test_a_finished_run_is_found_by_all_processes(config, runs, forks, tmp_path):
    shutil.copytree(runs[2].folder.parents[1], tmp_path / "runs", symlinks=True)
    codes, _, messages = forks.run(tmp_path, [write(config, tmp_path)] * 2)
    assert codes == [0, 0] and "is already trained (manifest verified)" in messages[0] and not messages[1]


def restart_from(run: Run, folder: Path, step: int) -> None:
    """A copy of the run as it was when the checkpoint of `step` was the newest."""
    shutil.copytree(run.folder.parents[1], folder / "runs", symlinks=True)
    copy = opened(folder)
    copy.manifest_file.unlink()
    for path in copy.checkpoints.iterdir():
        if int(path.name.rpartition("-")[2]) > step:
            shutil.rmtree(path)


def test_a_resume_by_as_many_processes_is_bit_identical(config, runs, forks, tmp_path):
    restart_from(runs[2], tmp_path, 2)
    codes, _, messages = forks.run(tmp_path, [write(config, tmp_path)] * 2)
    assert codes == [0, 0], messages
    assert "checkpoint-2" in messages[0] and "not bit-identical" not in messages[0]
    assert sha256(opened(tmp_path).adapter / ADAPTER_FILE) == sha256(runs[2].adapter / ADAPTER_FILE)
    assert curve(opened(tmp_path)) == curve(runs[2])


def test_a_resume_by_another_number_is_allowed_and_reported(config, runs, forks, tmp_path):
    restart_from(runs[2], tmp_path, 2)
    codes, _, messages = forks.run(tmp_path, [write(config, tmp_path)] * 4)
    assert codes == [0] * 4, messages
    assert "checkpoint-2 was written by 2 processes and 4 resume from it" in messages[0]
    assert curve(opened(tmp_path)) == [pytest.approx(row, rel=1e-6) for row in curve(runs[1])]


def test_a_killed_process_stops_all_with_a_sentence(config, forks, runs, tmp_path):
    codes, seconds, messages = forks.run(tmp_path, [write(config, tmp_path, save_steps=1)] * 2, kill=[1, 4])
    assert codes == [1, -signal.SIGKILL] and seconds < 60
    (sentence,) = [line for line in messages[0].splitlines() if line.startswith("error: ")]
    assert "the connection to another process of this run is lost" in sentence and "resume" in sentence
    assert "Traceback" not in messages[0]
    codes, _, messages = forks.run(tmp_path, [write(config, tmp_path, save_steps=1)] * 2)
    assert codes == [0, 0] and "checkpoint-3" in messages[0]
    assert sha256(opened(tmp_path).adapter / ADAPTER_FILE) == sha256(runs[2].adapter / ADAPTER_FILE)


def test_processes_that_differ_refuse_and_name_what_differs(config, forks, tmp_path):
    arguments = [write(config, tmp_path), [*write(config, tmp_path), "--set", "train.learning_rate=0.5"]]
    codes, _, messages = forks.run(tmp_path, arguments)
    assert codes == [1, 1]
    for message in messages:
        assert "error: rank 1 of 2 differs from rank 0 in config, expected the same in all processes" in message
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def machines(config, tiny_source, tmp_path_factory) -> list[Path]:
    """Two folders with the base and the corpus of the run under the same names."""
    folders = [tmp_path_factory.mktemp("machine") for _ in range(2)]
    for folder in folders:
        shutil.copytree(config.base.path, folder / "weights")
        shutil.copytree(config.corpus.path, folder / "data")
    return folders


def check_refused(config, forks, folders: list[Path], tmp_path: Path, what: str, **options) -> None:
    base, corpus = (
        dataclasses.replace(part, path=path) for part, path in zip((config.base, config.corpus), PLACES, strict=True)
    )
    arguments = write(dataclasses.replace(config, base=base, corpus=corpus), tmp_path)
    codes, seconds, messages = forks.run(tmp_path, [arguments] * 2, folders=list(map(str, folders)), **options)
    assert codes == [1, 1] and seconds < 60
    for message in messages:
        assert f"error: rank 1 of 2 differs from rank 0 in {what}, expected the same in all processes" in message
    assert not (tmp_path / "runs").exists()


def test_processes_with_other_weights_refuse(config, forks, machines, tiny_source, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(machines[1], other)
    convert.run(Config(base=Base(source=str(tiny_source), path=str(other / "weights"), dtype="fp32")))
    check_refused(config, forks, [machines[0], other], tmp_path, "the hash of base")


def test_processes_with_other_data_refuse(config, forks, machines, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(machines[1], other)
    rows = (other / "data" / "train.jsonl").read_text().splitlines(keepends=True)
    (other / "data" / "train.jsonl").write_text("".join(rows[1:]))
    manifest = read_manifest(other / "data")
    write_manifest(other / "data", "corpus", manifest["config"], manifest["inputs"], manifest["results"])
    check_refused(config, forks, [machines[0], other], tmp_path, "the hash of corpus")


def test_processes_with_other_code_refuse(config, forks, machines, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "recipe", checkout / "recipe")
    (checkout / "docker").mkdir()
    shutil.copy(ROOT / "docker" / "requirements.lock", checkout / "docker")
    with open(checkout / "recipe" / "train.py", "a") as file:
        file.write("# another commit\n")
    check_refused(config, forks, machines, tmp_path, "code", checkouts=[str(ROOT), str(checkout)])


def test_a_time_limit_of_one_process_stops_all_with_a_checkpoint(config, forks, tmp_path):
    arguments = write(config, tmp_path, epochs=900.0, save_steps=10**6, max_minutes=0.02)
    codes, _, messages = forks.run(tmp_path, [arguments] * 2)
    assert codes == [INTERRUPTED] * 2, messages
    assert "train.max_minutes: " in messages[0] and "error" not in messages[1]


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command += ["--monitor_interval=0.1"]  # seconds; it looks every 5 whether the processes have ended
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_torchrun_starts_the_processes(config, runs, tmp_path):
    """The command of `make train GPUS=2`."""
    done = torchrun("-m", "recipe.train", *write(config, tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 5 steps") == 1
    assert sha256(opened(tmp_path).adapter / ADAPTER_FILE) == sha256(runs[2].adapter / ADAPTER_FILE)


def test_torchrun_restarts_all_when_one_is_killed_and_they_resume(config, runs, tmp_path):
    script = Path(__file__).with_name("killed_once.py")
    done = torchrun("--max_restarts=1", str(script), *write(config, tmp_path, save_steps=1))
    assert done.returncode == 0, done.stderr
    assert "resume from " in done.stderr and "checkpoint-3" in done.stderr
    assert done.stdout.count("trained 5 steps") == 1
    assert sha256(opened(tmp_path).adapter / ADAPTER_FILE) == sha256(runs[2].adapter / ADAPTER_FILE)
