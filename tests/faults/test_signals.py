"""A signal at the n-th call, or streams that nobody reads: the next run ends the same."""

import os
import signal

import pytest

from tests.faults.child import Fault
from tests.faults.test_kills import places
from tests.faults.world import SLOW, STAGES

SENT = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize(
    ("stage", "sent"),
    [(stage, sent) for stage in STAGES for sent in (SENT[:1] if stage in SLOW else SENT)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_signal_leaves_no_traceback_and_the_next_run_ends_the_same(stages, stage, sent):
    for at in places(stages.calls[stage], 1 if stage in SLOW else 2):
        place = stages.trial(stage)
        stopped = stages.run(stage, place, Fault("signal", at, sent))
        assert stopped.problem() == "", f"{sent.name} at call {at}"
        assert stopped.status in (0, 130, -sent), f"{sent.name} at call {at}: {stopped.messages}"
        again = stages.run(stage, place)
        assert again.status == 0, again.messages
        assert stages.difference(stage, place) == "", f"{sent.name} at call {at}"


def break_output() -> None:
    """As in `make train 2>&1 | head`, once head has ended."""
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)
    os.dup2(write, 2)


def close_streams() -> None:
    """As some job systems start a program."""
    for number in (0, 1, 2):
        os.close(number)


@pytest.mark.parametrize("streams", [break_output, close_streams])
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in (*SLOW, "chat")])  # answers need a reader
def test_work_is_done_although_nobody_reads_the_messages(stages, stage, streams):
    place = stages.trial(stage)
    done = stages.run(stage, place, more=streams)
    assert done.problem() == ""
    assert stages.difference(stage, place) == ""
