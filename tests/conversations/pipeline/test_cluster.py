"""A Dask cluster leaves the same shards as one process, also when a worker is killed; `nox -s cluster` has Dask."""

import dataclasses
import os
import signal

import pytest

from recipe.conversations.pipeline import cluster, shards
from recipe.core.errors import RecipeError, UnfitError
from tests.conversations.pipeline.test_shards import config, contents, prepare, small, sources  # noqa: F401 - fixtures


@pytest.fixture(scope="module")
def address():
    """A scheduler and three workers, each a process of its own, on loopback."""
    distributed = pytest.importorskip("distributed", reason="not in this environment: run nox -s cluster")
    place = {"host": "127.0.0.1", "dashboard_address": None, "n_workers": 3, "threads_per_worker": 1}
    with distributed.LocalCluster(processes=True, memory_limit=0, **place) as started:
        yield started.scheduler_address


def with_cluster(config, address):  # noqa: F811
    return dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, cluster=address))


def test_three_workers_leave_the_files_of_one_process(address, small, sources, config, tmp_path):  # noqa: F811
    told = prepare(sources, tmp_path / "here", config, 1)
    assert prepare(sources, tmp_path / "there", with_cluster(config, address), 1) == told
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_killed_worker_loses_nothing(address, small, sources, config, tmp_path):  # noqa: F811
    from distributed import Client

    prepare(sources, tmp_path / "here", config, 1)
    with Client(address, set_as_default=False) as client:
        victim = next(iter(client.run(os.getpid).values()))

    def report(shard, count):
        if shard.number == 1:
            os.kill(victim, signal.SIGKILL)

    there = tmp_path / "there"
    numbers = shards.prepare(shards.divide(sources), there, with_cluster(config, address), 1, report)
    assert len(list(numbers)) > 5
    assert contents(there) == contents(tmp_path / "here")


def test_a_worker_with_other_code_is_refused(address, small, sources, config, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(cluster, "code_sha256", lambda: "other")
    with pytest.raises(RecipeError, match="has other code than this machine"):
        prepare(sources, tmp_path / "there", with_cluster(config, address), 1)


def test_a_scheduler_that_is_not_there_is_one_sentence(sources, config, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip("distributed", reason="not in this environment: run nox -s cluster")
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.5)
    for wrong in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(RecipeError, match="no Dask scheduler answers at"):
            prepare(sources, tmp_path / "there", with_cluster(config, wrong), 1)


def test_without_dask_it_says_what_to_install(sources, config, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(UnfitError, match=r"expected docker/requirements-cluster.lock"):
        prepare(sources, tmp_path / "there", with_cluster(config, "tcp://127.0.0.1:8786"), 1)
