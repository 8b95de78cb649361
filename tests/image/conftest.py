"""The image, run as a careful site would: no network, a read-only root, no rights. tests/image/run.sh builds it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Image:
    careful = ("--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *command: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        """What `podman run IMAGE COMMAND` says and ends with."""
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
        pytest.fail("IMAGE names no image: these tests are run by `nox -s image`", pytrace=False)
    return Image(os.environ["IMAGE"])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the image is built from and driven by, without the git history: a copy to break or to work in."""
    for name in ("Makefile", "LICENSE", ".dockerignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("docker", "recipe"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path
