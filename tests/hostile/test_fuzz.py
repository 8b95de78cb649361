"""Damaged files of every kind that is read: a value or a RecipeError, within seconds, and never another error."""

import random
import time

import pytest

from tests.hostile import targets
from tests.hostile.mutate import mutate

CASES = 300
SECONDS = 10  # for a case; the slowest takes a tenth of one


@pytest.fixture(scope="module")
def seeds() -> dict[str, list[bytes]]:
    return targets.seeds()


def test_every_target_has_seeds_and_reads_them(seeds):
    assert seeds.keys() == targets.TARGETS.keys()
    for name, (file, reader) in targets.TARGETS.items():
        for data in seeds[name]:
            (targets.FOLDER / file).write_bytes(data)
            reader(targets.FOLDER / file)  # no RecipeError either
            (targets.FOLDER / file).unlink()


@pytest.mark.parametrize("name", targets.TARGETS)
def test_damaged_files_are_read_or_refused(seeds, name):
    for number in range(CASES):
        data = mutate(seeds[name], random.Random(f"{name} {number}"))
        started = time.monotonic()
        targets.read(name, data)
        assert time.monotonic() - started < SECONDS, data[:500]
