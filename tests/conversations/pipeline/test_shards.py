"""The same parts whatever the number of processes; what is finished stays finished."""

import itertools
import json
import signal
from multiprocessing import forkserver
from pathlib import Path

import pytest

from recipe.conversations.cleaning.filters import Rules
from recipe.conversations.pipeline import shards, workers
from recipe.conversations.pipeline.shards import Job, Source
from recipe.conversations.tokens import encoders


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(shards, "PART_BYTES", 2000)


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    out = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.json"
        turns = [{"from": "human", "value": "question " * 9}, {"from": "gpt", "value": "answer " * 9}]
        records = [{"id": f"{name}{number}", "conversations": turns} for number in range(60)]
        path.write_text(json.dumps([*records[:30], {"odd": 1}, *records[30:]]))
        out.append(Source(path.name, path))
    return out


@pytest.fixture
def job(byte_level_tokenizer) -> Job:
    return Job(encoders(byte_level_tokenizer), "vicuna_v1.1", 512, Rules(near=True), 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def prepare(sources: list[Source], folder: Path, job: Job, processes: int) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    numbers = shards.prepare(
        shards.divide(sources), folder, job, processes, lambda part, count: told.append((part.ends, count))
    )
    assert list(numbers) == list(range(len(told)))
    return told


def test_any_number_of_processes_leaves_the_same_files(small, sources, job, tmp_path: Path) -> None:
    told = [prepare(sources, tmp_path / f"parts{processes}", job, processes) for processes in (1, 3)]
    assert told[0] == told[1]
    assert sum(count for _, count in told[0]) == 122
    assert len(told[0]) > 10
    assert contents(tmp_path / "parts1") == contents(tmp_path / "parts3")


def test_a_finished_part_is_not_prepared_again(small, sources, job, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "parts"
    stopped = shards.prepare(shards.divide(sources), folder, job, 1, lambda part, count: None)
    assert list(itertools.islice(stopped, 5)) == [0, 1, 2, 3, 4]
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    shards.file_of(folder, 3, "samples").write_bytes(b"cut off")  # then it was not finished after all
    prepare(sources, folder, job, 1)
    again = {name for name, stamp in stamps.items() if (folder / name).stat().st_mtime_ns != stamp}
    assert again == {"000003.samples", "000003.index", "000003.sketches"}
    prepare(sources, tmp_path / "whole", job, 1)
    assert contents(folder) == contents(tmp_path / "whole")


def test_parts_follow_the_sources_borders(small, sources) -> None:
    found = list(shards.divide(sources))
    assert [part.number for part in found] == list(range(len(found)))
    for source in sources:
        mine = [part for part in found if part.source == source]
        assert [part.first for part in mine] == [0, *itertools.accumulate(len(part.records) for part in mine)][:-1]
        assert mine[-1].ends == source.path.stat().st_size - 1


def test_ctrl_c_reaches_this_process_alone_and_not_while_it_starts_another() -> None:
    workers.get_ready()
    status = Path(f"/proc/{forkserver._forkserver._forkserver_pid}/status").read_text()
    blocked = next(line for line in status.splitlines() if line.startswith("SigBlk"))
    assert int(blocked.split()[1], 16) & 1 << (signal.SIGINT - 1)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    done = False
    with pytest.raises(KeyboardInterrupt), workers.uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done
