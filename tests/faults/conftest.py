"""The stages that the faults happen to, and how many: `nox -s faults -- --kills 1000` is the long form."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import surroundings, world


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=0, help="kill the stages this often in all, and write results/")
    parser.addoption("--full", type=int, default=0, help="fill the disk this often in all, and write results/")
    parser.addoption("--flips", type=int, default=0, help="flip this many bits of inputs in all, and write results/")


@pytest.fixture(scope="session")
def stages(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[world.World]:
    world.preload()
    with surroundings.start_servers() as addresses:
        yield world.build(tmp_path_factory.mktemp("faults"), tiny_source, addresses)
