"""A disk that is full from the n-th call on, or a limit of the system: one sentence, and the next run ends the same."""

import random
import resource
import signal

import pytest

from tests.faults.child import Fault
from tests.faults.longform import RESULTS, carry_on
from tests.faults.test_kills import places
from tests.faults.world import SLOW, STAGES, World


def fill(stages: World, stage: str, at: int) -> str:
    """Run the stage on a disk that is full from a call on, then again; what is wrong then, empty: nothing."""
    place = stages.trial(stage)
    full = stages.run(stage, place, Fault("full", at))
    if problem := full.problem():
        return problem
    if full.status and "no space is left on the disk" not in full.messages:
        return f"it does not say that the disk is full: {full.messages[-500:]}"
    again = stages.run(stage, place)
    if again.status:
        return f"the second run ended with {again.status}: {again.messages[-1500:]}"
    return stages.difference(stage, place)


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_sentence_and_the_next_run_ends_the_same(stages, stage):
    for at in places(stages.calls[stage] * 2 // 3, 1 if stage in SLOW else 3):
        assert fill(stages, stage, at) == "", f"full at call {at}"


def test_many_full_disks(stages, request):
    """The long form: calls of all stages in a shuffled order, each at most once."""
    wanted = request.config.getoption("--full")
    if not wanted:
        pytest.skip("the long form: pytest tests/faults --full 500")
    trials = [(stage, at) for stage in STAGES for at in range(1, stages.calls[stage] + 1)]
    random.Random(0).shuffle(trials)

    def attempt(trial: tuple[str, int]) -> tuple[str, str]:
        return trial[0], fill(stages, *trial)

    found = carry_on(RESULTS / "full.json", trials[:wanted], trials, attempt)
    assert not found["problems"]


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
