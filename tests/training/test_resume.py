"""Checkpoints on the disk: rotation after sealing, damaged ones set aside, foreign names left alone."""

import dataclasses
import errno
import json

import pytest

from recipe import train
from recipe.core.errors import RecipeError
from recipe.core.files import sha256
from recipe.core.manifest import read_manifest, verify, write_manifest
from recipe.core.run import Run
from recipe.model.adapter import ADAPTER_FILE
from recipe.training import checkpoint as training
from recipe.training import resume


def write_checkpoint(folder, step: int):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "content").write_text(str(step))
    write_manifest(path, resume.STAGE, {}, {}, {"step": step, "threads": 1})
    return path


@pytest.fixture
def foreign(tmp_path):
    """What a person may put beside checkpoints."""
    (tmp_path / "checkpoint-foo").mkdir()
    (tmp_path / "checkpoint-2-backup").mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoint-98").symlink_to(tmp_path / "elsewhere")
    return {path.name for path in tmp_path.iterdir()}


def test_foreign_names_are_ignored_and_kept(tmp_path, foreign):
    for step in (2, 10, 4):
        write_checkpoint(tmp_path, step)
    assert [path.name for path in resume.list_checkpoints(tmp_path)] == [
        "checkpoint-10",
        "checkpoint-4",
        "checkpoint-2",
    ]
    assert resume.newest_checkpoint(tmp_path)[0].name == "checkpoint-10"
    resume.rotate(tmp_path, keep=1)
    assert {path.name for path in tmp_path.iterdir()} == foreign | {"checkpoint-10"}


@pytest.mark.parametrize("damage", ["{}", "no json", '{"stage": 1, "inputs": 1, "outputs": 1, "config": 1}', None])
def test_a_damaged_manifest_sets_the_checkpoint_aside(tmp_path, damage, capsys):
    write_checkpoint(tmp_path, 2)
    newest = write_checkpoint(tmp_path, 4)
    (tmp_path / "damaged-checkpoint-4-1").mkdir()
    if damage is None:
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text(damage)
    assert resume.newest_checkpoint(tmp_path)[0].name == "checkpoint-2"
    assert (tmp_path / "damaged-checkpoint-4-2" / "content").read_text() == "4"
    assert "checkpoint-4 is damaged or incomplete and was renamed to damaged-checkpoint-4-2" in capsys.readouterr().err


def test_a_kill_while_old_checkpoints_are_removed_leaves_no_half(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        path = write_checkpoint(tmp_path, step)
        write_manifest(path, resume.STAGE, {}, resume.hash_packs([]), {"step": step, "threads": 1})

    def killed(path, **options):
        if path.is_dir():
            (path / "manifest.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resume.shutil, "rmtree", killed)
        resume.rotate(tmp_path, keep=1)
    assert all((path / "manifest.json").is_file() for path in resume.list_checkpoints(tmp_path))
    assert resume.find_checkpoint(tmp_path, [], keep=1) == tmp_path / "checkpoint-3"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    for name in (".checkpoint-4.partial", ".checkpoint-4.old", ".checkpoint-mine"):
        (tmp_path / name).mkdir()
    resume.remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".checkpoint-mine"]


class Killed(BaseException):
    """A kill -9, to Python."""


@pytest.mark.parametrize("call", ["write_state", "write_manifest"])
def test_a_kill_while_saving_leaves_a_whole_checkpoint(tiny_run, trained_once, monkeypatch, call):
    """Even with keep_checkpoints = 1: the old one goes only when the new one is complete."""
    config = dataclasses.replace(tiny_run, train=dataclasses.replace(tiny_run.train, keep_checkpoints=1))
    real, calls = getattr(training, call), []

    def kill(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, call, kill)
        train.run(config)
    folder = Run.latest(config) / "checkpoints"
    assert [path.name for path in resume.list_checkpoints(folder)] == ["checkpoint-2"]
    assert verify(folder / "checkpoint-2") == []
    results = train.run(config)["results"]
    assert [path.name for path in folder.iterdir()] == [f"checkpoint-{results['steps']}"]
    one, two = (sha256(Run.latest(each) / "adapter" / ADAPTER_FILE) for each in (config, trained_once))
    assert one == two


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    """One that holds pickles, as versions before this one wrote them."""
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "optimizer.pt").write_bytes(b"pickle")
    with pytest.raises(RecipeError, match=r"another version of the recipe may have written it; resume with that"):
        training.read_state(tmp_path / "checkpoint-2")


def test_another_number_of_threads_is_reported(tmp_path, capsys):
    path = write_checkpoint(tmp_path, 2)
    resume.report_threads(path, read_manifest(path), 1)
    assert not capsys.readouterr().err
    resume.report_threads(path, read_manifest(path), 2)
    message = capsys.readouterr().err
    assert "checkpoint-2 was written with 1 CPU threads and this process uses 2" in message
    assert "OMP_NUM_THREADS=1" in message
    resume.report_threads(path, read_manifest(path), 1, processes=2)
    assert "checkpoint-2 was written by 1 processes and 2 resume from it" in capsys.readouterr().err


def test_checkpoints_and_manifest_name_threads_and_no_host(trained_run):
    import socket

    import torch

    _, run = trained_run
    assert json.loads(run.manifest_file.read_text())["results"]["threads"] == torch.get_num_threads()
    for path in resume.list_checkpoints(run.checkpoints):
        assert json.loads((path / "manifest.json").read_text())["results"]["threads"] == torch.get_num_threads()
        assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}, "no pickle"
        for file in path.iterdir():
            content = file.read_bytes()
            assert socket.gethostname().encode() not in content and str(run.folder).encode() not in content


def test_a_resume_takes_no_more_threads_than_the_checkpoint(tmp_path, monkeypatch):
    import torch

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        resume.use_threads({"results": {"threads": 4}})
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        resume.use_threads({"results": {"threads": 1}})
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        resume.use_threads({"results": {"threads": 1}})
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_manifest_names_the_threads_and_processes_of_earlier_parts(tmp_path):
    path = write_checkpoint(tmp_path, 2)
    assert resume.resumed_from(path, 1, 1) == []
    assert resume.resumed_from(path, 2, 1) == [[1, 1]]
    write_manifest(path, resume.STAGE, {}, {}, {"threads": 2, "processes": 1, "resumed_from": [[1, 1]]})
    assert resume.resumed_from(path, 2, 1) == [[1, 1]]
    assert resume.resumed_from(path, 2, 2) == [[1, 1], [2, 1]]


def test_a_failure_that_may_pass_leaves_the_checkpoint_where_it_is(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path, 2)

    def stale(path):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Stale"):
        patch.setattr(resume, "check_intact", stale)
        resume.newest_checkpoint(tmp_path)
    assert resume.newest_checkpoint(tmp_path)[0] == path
