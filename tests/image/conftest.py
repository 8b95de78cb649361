"""The image, run as restricted as possible: no network, read-only root, no rights. tests/image/run.sh builds it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Image:
    """An image of podman's local storage."""

    careful = ("--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *command: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        """Run `podman run IMAGE COMMAND...` to its end; its output as text."""
        return subprocess.run(
            ["podman", "run", *self.careful, *flags, self.name, *command], capture_output=True, text=True, timeout=600
        )

    def python(self, *command: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        return self.run(*command, flags=("--entrypoint=python", *flags))

    def shell(self, script: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        return self.run("-c", script, flags=("--entrypoint=/bin/bash", *flags))

    def inspect(self, what: str) -> str:
        command = ["podman", "image", "inspect", "--format", what, self.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="session")
def image() -> Image:
    if "IMAGE" not in os.environ:
        pytest.fail("found no IMAGE in the environment: run these tests by `nox -s image`", pytrace=False)
    return Image(os.environ["IMAGE"])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the build context, Makefile and docker/, without the git history, that a test may change."""
    for name in ("Makefile", "LICENSE", ".dockerignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("docker", "recipe"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path
