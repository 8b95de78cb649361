"""A stage killed at any call that changes a file, or in a power cut, ends with the same bytes when it is run again."""

import random
import signal

import pytest

from tests.faults.child import Fault
from tests.faults.longform import RESULTS, carry_on
from tests.faults.world import SLOW, STAGES, World

SHORT = 4  # kills of each stage


def kill(stages: World, stage: str, fault: Fault) -> str:
    """Kill the stage, run it again; what is wrong then, empty: nothing."""
    place = stages.trial(stage)
    killed = stages.run(stage, place, fault)
    if killed.status != -signal.SIGKILL:
        return f"it ended with {killed.status} before the kill: {killed.messages[-500:]}"
    again = stages.run(stage, place)
    if again.status:
        return f"the second run ended with {again.status}: {again.messages[-1500:]}"
    return stages.difference(stage, place)


def places(calls: int, count: int) -> list[int]:
    """`count` of the numbers 1 to `calls`, spread evenly, the last among them."""
    return sorted({max(1, round(calls * number / count)) for number in range(1, count + 1)})


@pytest.mark.parametrize("kind", ["kill", "torn"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_ends_the_same(stages, stage, kind):
    half = 1 if stage in SLOW else SHORT // 2
    for at in places(stages.calls[stage] - (kind == "torn"), half):
        assert kill(stages, stage, Fault(kind, at)) == "", f"killed at call {at} of {stages.calls[stage]}"


def test_many_kills(stages, request):
    """The long form: calls of all stages in a shuffled order, each at most once of a kind."""
    wanted = request.config.getoption("--kills")
    if not wanted:
        pytest.skip("the long form: pytest tests/faults --kills 1000")
    trials = [
        (stage, kind, at) for kind in ("kill", "torn") for stage in STAGES for at in range(1, stages.calls[stage] + 1)
    ]
    random.Random(0).shuffle(trials)

    def attempt(trial: tuple[str, str, int]) -> tuple[str, str]:
        stage, kind, at = trial
        return stage, kill(stages, stage, Fault(kind, at))

    found = carry_on(RESULTS / "kills.json", trials[:wanted], trials, attempt)
    assert not found["problems"]
