"""A flipped bit in any file that a stage reads: refused in one sentence, or it changes nothing.

In what no manifest covers (raw weights, raw conversations, the config) another byte is another input, and the manifest
that the stage then writes says so.
"""

import random
import shutil
from pathlib import Path

import pytest

from tests.faults.longform import RESULTS, carry_on
from tests.faults.world import RAW, SLOW, STAGES, World

# What each stage reads; other files of the folder before it are those of other stages.
READS = {
    "fetch": ["index/toy_weights-1.0-py3-none-any.whl"],
    "hub": [],  # what servers send is damaged in tests/downloads
    "meta": [],
    "convert": ["run.toml", "raw/tiny"],
    "corpus": ["run.toml", "raw/talk.json", "weights/tiny"],
    "export": ["run.toml", "data/tiny"],
    "train": ["run.toml", "weights", "data/tiny"],
    "gpus": ["run.toml", "weights", "data/tiny"],
    "evaluate": ["weights", "data/tiny", "runs"],
    "merge": ["weights", "runs", "data"],
    "gguf": ["weights", "runs"],
    "delta": ["weights/tiny", "runs/tiny"],
    "judge": ["runs/tiny", "weights", "data/tiny"],
    "report": ["runs", "data"],
    "serve": ["runs/tiny"],
    "chat": ["runs/tiny", "weights"],
    "rehearse": ["run.toml", "weights/tiny/config.json"],
}


def inputs(folder: Path, stage: str) -> list[str]:
    places = [folder / name for name in READS[stage]]
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*")))]
    files = [file for file in files if file.is_file() and not any(path.is_symlink() for path in (file, *file.parents))]
    return [file.relative_to(folder).as_posix() for file in files if file.stat().st_size]


def flip(stages: World, stage: str, name: str, chance: random.Random) -> tuple[str, str]:
    """(refused, harmless or another input; what is wrong: empty is nothing) with one bit of a file flipped."""
    place = stages.trial(stage)
    data = bytearray((place / name).read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    (place / name).write_bytes(data)
    done = stages.run(stage, place)
    if problem := done.problem():
        return "", problem
    if done.status:
        return "refused", ""
    (place / name).write_bytes((stages.before(stage) / name).read_bytes())
    for aside in place.rglob("*.damaged"):  # a folder whose manifest was hit is set aside and made again
        shutil.rmtree(aside)
    if not (difference := stages.difference(stage, place)):
        return "harmless", ""
    return "another input", "" if name.startswith(RAW) else f"exit code 0, and the results {difference}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_flipped_bit_is_refused_or_harmless(stages, stage):
    chance = random.Random(stage)
    names = inputs(stages.before(stage), stage)
    for name in chance.sample(names, min(2 if stage in (*SLOW, "evaluate") else 4, len(names))):
        assert flip(stages, stage, name, chance)[1] == "", name


@pytest.mark.parametrize(
    ("stage", "pattern"),
    [
        ("evaluate", "runs/tiny/*/records.json"),
        ("judge", "runs/tiny/*/records.json"),
        ("report", "data/tiny/manifest.json"),
    ],
)
def test_damage_in_what_a_stage_adds_to_or_shows_is_refused(stages, stage, pattern):
    folder = stages.before(stage)
    (name,) = [path for path in inputs(folder, stage) if (folder / path).match(pattern)]
    assert flip(stages, stage, name, random.Random(0)) == ("refused", "")


def test_many_flipped_bits(stages, request):
    """The long form: every file that each stage reads, in turn, until the number is reached."""
    wanted = request.config.getoption("--flips")
    if not wanted:
        pytest.skip("the long form: pytest tests/faults --flips 1000")
    files = [(stage, name) for stage in STAGES for name in inputs(stages.before(stage), stage)]
    random.Random(0).shuffle(files)
    trials = [(number, *files[number % len(files)]) for number in range(wanted)]

    def attempt(trial: tuple[int, str, str]) -> tuple[str, str]:
        number, stage, name = trial
        return flip(stages, stage, name, random.Random(number))

    found = carry_on(RESULTS / "flips.json", trials, files, attempt)
    assert not found["problems"]
