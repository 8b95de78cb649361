"""A run on a CPU gives up threads when other programs start to keep its cores busy, says so, and records it."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from recipe import train
from recipe.core.manifest import read_manifest
from recipe.core.run import Run
from recipe.training import threads


@pytest.fixture
def two_threads(monkeypatch):
    """A process that chose two threads when it began."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("recipe.model.load.limit_threads", lambda: torch.set_num_threads(2))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clock(monkeypatch):
    """Every pack of the run takes a second at first, and later a hundred."""
    moments = itertools.chain(range(10), itertools.count(10, 100))
    monkeypatch.setattr(threads, "time", SimpleNamespace(monotonic=lambda: next(moments)))


def test_a_run_gives_up_threads_when_cores_become_busy(tiny_run, two_threads, clock, monkeypatch, capsys):
    monkeypatch.setattr(threads, "free_cores", lambda: (1, 2))
    results = train.run(tiny_run)["results"]
    said = capsys.readouterr().err
    assert said.count("other programs keep 1 of 2 cores busy: using 1 thread instead of 2 from now on") == 1
    assert (results["threads"], results["resumed_from"]) == (1, [[2, 1]])
    newest = max((Run.latest(tiny_run) / "checkpoints").glob("checkpoint-*"), key=lambda path: len(path.name))
    assert read_manifest(newest)["results"]["resumed_from"] == [[2, 1]]


@pytest.mark.parametrize("reason", ["no core is busy", "OMP_NUM_THREADS"])
def test_a_run_keeps_its_threads(tiny_run, two_threads, clock, monkeypatch, reason):
    monkeypatch.setattr(threads, "free_cores", lambda: (2, 2) if reason == "no core is busy" else (1, 2))
    if reason == "OMP_NUM_THREADS":
        monkeypatch.setenv(reason, "2")
    results = train.run(tiny_run)["results"]
    assert (results["threads"], results["resumed_from"]) == (2, [])
