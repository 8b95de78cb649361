"""The stages that the faults happen to, and how many: `nox -s faults -- --kills 1000` is the long form."""

import json
from pathlib import Path

import pytest

from tests.faults import world

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=0, help="kill the stages this often in all, and write results/")
    parser.addoption("--flips", type=int, default=0, help="flip this many bits of inputs in all, and write results/")


@pytest.fixture(scope="session")
def stages(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> world.World:
    world.preload()
    return world.build(tmp_path_factory.mktemp("faults"), tiny_source)


def write_results(name: str, found: dict[str, object]) -> None:
    """Of a long form, for the README."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
