"""The number of free cores: with a program that keeps one busy, in a container with a limit."""

import os
import subprocess
import sys
import time

import pytest

from recipe.core import cpu
from recipe.model import load

LINE = "cpu{} {} 0 0 {} 0 0 0 0 0 0\n"  # ticks: user, nice, system, idle, ...


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Four cores that are `busy` for given shares of the time, in a container with a quota."""

    def pretend(*busy, quota="max"):
        stat, limit = tmp_path / "stat", tmp_path / "cpu.max"
        limit.write_text(f"{quota} 100000\n")
        ticks = os.sysconf("SC_CLK_TCK") * cpu.SECONDS

        def write(passed):
            rows = [LINE.format(number, round(share * passed), 0) for number, share in enumerate(busy)]
            stat.write_text("".join([LINE.format("", 10**6, 0), *rows, "intr 1 2 3\n"]))

        write(0)
        monkeypatch.setattr(cpu, "STAT", stat)
        monkeypatch.setattr(cpu, "QUOTA", limit)
        monkeypatch.setattr(cpu.time, "sleep", lambda seconds: write(ticks))
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(len(busy))))
        return cpu.free_cores()

    return pretend


@pytest.mark.parametrize(
    ("busy", "quota", "expected"),
    [
        ((0, 0, 0, 0), "max", (4, 4)),
        ((0.3, 0.2, 0.1, 0), "max", (4, 4)),  # a desktop at rest
        ((1, 0, 0, 0), "max", (3, 4)),
        ((0.5, 0.4, 0, 0), "max", (3, 4)),  # one program that moves between cores
        ((1, 1, 1, 1), "max", (1, 4)),
        ((0, 0, 0, 0), "200000", (2, 4 // 2)),
        ((1, 1, 0, 0), "200000", (2, 2)),  # there are two more cores for the others
        ((1, 1, 1, 0), "200000", (1, 2)),
        ((0, 0, 0, 0), "50000", (1, 1)),
    ],
)
def test_cores_that_others_use_are_not_free(machine, busy, quota, expected):
    assert machine(*busy, quota=quota) == expected


def test_a_busy_program_is_seen_on_this_machine():
    code = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"
    cores = sorted(os.sched_getaffinity(0))
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        before = cpu._busy_seconds(cores)
        time.sleep(1)
        assert cpu._busy_seconds(cores) - before > 0.3
        process.kill()


def test_threads_of_busy_cores_are_given_up_and_that_is_said(monkeypatch, capsys):
    chosen = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(load.torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(load.torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(load, "free_cores", lambda: (3, 4))
    load.limit_threads.__wrapped__()
    assert chosen == [3]
    assert "other programs keep 1 of 4 cores busy: using 3 threads" in capsys.readouterr().err
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    load.limit_threads.__wrapped__()
    assert chosen == [3]
