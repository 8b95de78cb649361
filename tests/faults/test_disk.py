"""A disk that is full from the n-th call on, or a limit of the system: one sentence, and the next run ends the same."""

import resource
import signal

import pytest

from tests.faults.child import Fault
from tests.faults.test_kills import places
from tests.faults.world import SLOW, STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_sentence_and_the_next_run_ends_the_same(stages, stage):
    for at in places(stages.calls[stage] * 2 // 3, 1 if stage in SLOW else 3):
        place = stages.trial(stage)
        full = stages.run(stage, place, Fault("full", at))
        assert full.problem() == "", f"full at call {at}"
        assert full.status == 0 or "no space is left on the disk" in full.messages, f"{at}: {full.messages}"
        again = stages.run(stage, place)
        assert again.status == 0, again.messages
        assert stages.difference(stage, place) == "", f"full at call {at}"


def limit_file_size() -> None:
    """Libraries that write by themselves meet this too, and none of them raises an OSError."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))


def limit_memory() -> None:
    """To hardly more than the imports have taken."""
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 18), size + (1 << 18)))


@pytest.mark.parametrize("limit", [limit_file_size, limit_files, limit_memory])
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in SLOW])
def test_a_limit_is_one_sentence_and_the_next_run_ends_the_same(stages, stage, limit):
    place = stages.trial(stage)
    limited = stages.run(stage, place, more=limit)
    assert limited.problem() == ""
    again = stages.run(stage, place)
    assert again.status == 0, again.messages
    assert stages.difference(stage, place) == ""
