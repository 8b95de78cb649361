"""Sessions behind `make test`. They run in the environment that calls nox: the locked packages, nothing else."""

import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.stop_on_first_error = False


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: style, imports, bugs it knows, format; hadolint: the Dockerfile."""
    session.run(sys.executable, "-m", "ruff", "check", ".")
    session.run(sys.executable, "-m", "ruff", "format", "--check", ".")
    session.run(str(Path(sys.executable).with_name("hadolint")), "docker/Dockerfile", external=True)


@nox.session
def types(session: nox.Session) -> None:
    """mypy over recipe/."""
    session.run(sys.executable, "-m", "mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """pytest on the CPU: tiny real objects, only hardware mocked."""
    session.run(sys.executable, "-m", "pytest", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """`make demo` from nothing, then its numbers against what the README promises, then a second run that skips."""
    session.run(sys.executable, "-m", "pytest", "tests/demo", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """On a card: int8, attention, memory against the plan; on a P100 with weights also 7B. REQUIRE_GPU=1: no skips."""
    session.run(sys.executable, "-m", "pytest", "tests/gpu", *session.posargs)


@nox.session
def image(session: nox.Session) -> None:
    """The real image: built, tried without network or rights, built again, digests compared. 25 GB, then removed."""
    session.run("tests/image/run.sh", sys.executable, *session.posargs, external=True)
