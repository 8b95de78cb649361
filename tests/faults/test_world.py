"""Two undisturbed runs of every stage leave the same bytes: what the other tests here compare with."""

import pytest

from tests.faults.world import STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_an_undisturbed_stage_leaves_the_same_again(stages, stage):
    place = stages.trial(stage)
    done = stages.run(stage, place)
    assert (done.status, done.calls) == (0, stages.calls[stage]), done.messages
    assert stages.difference(stage, place) == ""
