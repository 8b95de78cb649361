"""A stage killed at any call that changes a file, or in a power cut, ends with the same bytes when it is run again."""

import random
import signal

import pytest

from tests.faults.child import Fault
from tests.faults.conftest import write_results
from tests.faults.world import STAGES, World

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
    half = SHORT // 2 if stage != "fetch" else 1  # pip takes seconds
    for at in places(stages.calls[stage] - (kind == "torn"), half):
        assert kill(stages, stage, Fault(kind, at)) == "", f"killed at call {at} of {stages.calls[stage]}"


def test_many_kills(stages, request):
    """The long form: calls of all stages in a shuffled order, each at most once."""
    wanted = request.config.getoption("--kills")
    if not wanted:
        pytest.skip("the long form: pytest tests/faults --kills 1000")
    trials = [
        (stage, Fault(kind, at))
        for kind in ("kill", "torn")
        for stage in STAGES
        for at in range(1, stages.calls[stage] + 1)
    ]
    random.Random(0).shuffle(trials)
    trials = trials[:wanted]
    survived: dict[str, int] = {}
    failed: dict[str, str] = {}
    for number, (stage, fault) in enumerate(trials):
        if problem := kill(stages, stage, fault):
            failed[f"{stage}, {fault.kind} at {fault.at}"] = problem
        else:
            survived[stage] = survived.get(stage, 0) + 1
        if number % 20 == 0 or number == len(trials) - 1:
            total = sum(survived.values())
            write_results("kills", {"kills": total + len(failed), "same": total, "stages": survived, "failed": failed})
    assert not failed
