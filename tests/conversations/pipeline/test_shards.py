"""The same shards whatever the number of workers; a finished shard stays finished."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from recipe.conversations.messages import Conversation, Message
from recipe.conversations.pipeline import shards, workers
from recipe.conversations.pipeline.counting import TokenCounter
from recipe.conversations.pipeline.resolve import RawSource
from recipe.conversations.pipeline.shards import ShardConfig
from recipe.conversations.tokens import encoders
from recipe.core.config import Corpus


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 2000)


@pytest.fixture
def sources(tmp_path: Path) -> list[RawSource]:
    out = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.json"
        turns = [{"from": "human", "value": "question " * 9}, {"from": "gpt", "value": "answer " * 9}]
        records = [{"id": f"{name}{number}", "conversations": turns} for number in range(60)]
        path.write_text(json.dumps([*records[:30], {"odd": 1}, *records[30:]]))
        out.append(RawSource(path.name, path))
    return out


@pytest.fixture
def config(byte_level_tokenizer) -> ShardConfig:
    return ShardConfig(TokenCounter(encoders(byte_level_tokenizer)), Corpus(max_length=512, duplicates="near"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def prepare(sources: list[RawSource], folder: Path, config: ShardConfig, processes: int) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    numbers = shards.prepare(
        shards.divide(sources), folder, config, processes, lambda shard, count: told.append((shard.end, count))
    )
    assert list(numbers) == list(range(len(told)))
    return told


def test_any_number_of_processes_leaves_the_same_files(small, sources, config, tmp_path: Path) -> None:
    told = [prepare(sources, tmp_path / f"shards{processes}", config, processes) for processes in (1, 3)]
    assert told[0] == told[1]
    assert sum(count for _, count in told[0]) == 122
    assert len(told[0]) > 10
    assert contents(tmp_path / "shards1") == contents(tmp_path / "shards3")


def test_a_finished_shard_is_not_prepared_again(small, sources, config, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "shards"
    stopped = shards.prepare(shards.divide(sources), folder, config, 1, lambda shard, count: None)
    assert list(itertools.islice(stopped, 5)) == [0, 1, 2, 3, 4]
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    shards.path_of(folder, 3, "samples").write_bytes(b"cut off")  # then it was not finished after all
    prepare(sources, folder, config, 1)
    again = {name for name, stamp in stamps.items() if (folder / name).stat().st_mtime_ns != stamp}
    assert again == {f"000003.{kind}" for kind in ("samples", "index", "signatures", "changes")}
    prepare(sources, tmp_path / "whole", config, 1)
    assert contents(folder) == contents(tmp_path / "whole")


def test_shards_follow_the_borders_of_sources(small, sources) -> None:
    found = list(shards.divide(sources))
    assert [shard.number for shard in found] == list(range(len(found)))
    for source in sources:
        mine = [shard for shard in found if shard.source == source]
        assert [shard.first for shard in mine] == [0, *itertools.accumulate(len(shard.records) for shard in mine)][:-1]
        assert mine[-1].end == source.path.stat().st_size - 1


@pytest.mark.parametrize("kind", ["samples", "index", "signatures"])
@pytest.mark.parametrize("damage", [lambda data: bytes(len(data)), lambda data: data[:-9] + b"X" + data[-8:], None])
def test_a_damaged_shard_is_prepared_again(small, sources, config, tmp_path: Path, kind, damage) -> None:
    """Zeros, as after a power cut; one changed byte; a file that is gone."""
    prepare(sources, tmp_path / "whole", config, 1)
    prepare(sources, tmp_path / "shards", config, 1)
    path = shards.path_of(tmp_path / "shards", 2, kind)
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    prepare(sources, tmp_path / "shards", config, 1)
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")


def test_a_shard_that_was_altered_is_an_error(small, sources, config, tmp_path: Path) -> None:
    prepare(sources, tmp_path, config, 1)
    path = shards.path_of(tmp_path, 1, "samples")
    whole = path.read_bytes()
    assert shards.read(tmp_path, 1, "samples") == whole
    path.write_bytes(whole[:-1] + b" ")
    with pytest.raises(shards.DamagedError, match=r"shard 1 in .* is missing or damaged"):
        shards.read(tmp_path, 1, "samples")


def test_finished_shards_are_synced(small, sources, config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(sources, tmp_path, config, 1)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())))
    shards.sync(tmp_path, 1)
    assert sorted(synced) == [str(path) for path in sorted(tmp_path.glob("000001.*"))]


def test_workers_ignore_ctrl_c() -> None:
    with ProcessPoolExecutor(1, workers.context(), workers.follow_parent) as pool:
        worker = pool.submit(os.getpid).result()
        os.kill(worker, signal.SIGINT)
        assert pool.submit(os.getpid).result() == worker
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_signals_wait_while_a_worker_is_started() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), workers.defer_signals():
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done


def test_untrained_turns_are_marked_and_others_are_not(config, tmp_path: Path) -> None:
    turns = (Message("user", "q"), Message("assistant", "bad", trained=False), Message("user", "r"))
    item = Conversation("c", (*turns, Message("assistant", "good")), "made")
    assert list(shards.prepare(shards.divide([], [item]), tmp_path, config, 1, lambda shard, count: None)) == [0]
    line = json.loads("{" + shards.path_of(tmp_path, 0, "samples").read_text())
    assert line["messages"] == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "bad", "trained": False},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "good"},
    ]


STUCK = """
import os, re, sys, time
from concurrent.futures import ProcessPoolExecutor
from recipe.conversations.pipeline import workers

def stick(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    re.match(r"(a+)+$", "a" * 60 + "!")  # for years, and holds the interpreter's lock

if __name__ == "__main__":
    ProcessPoolExecutor(1, workers.context(), workers.follow_parent).submit(stick, sys.argv[1])
    time.sleep(60)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_stuck_worker_dies_with_its_parent(tmp_path: Path, sent: signal.Signals) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    noted = tmp_path / "worker"
    root = str(Path(__file__).parents[3])
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "stuck.py", noted],
        env={**os.environ, "PYTHONPATH": root},
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: noted.is_file() and noted.read_text())
    worker = int(noted.read_text())
    time.sleep(0.2)
    parent.send_signal(sent)
    parent.wait(10)
    wait_until(lambda: not is_running(worker))


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
