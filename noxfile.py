"""The checks. They run in the environment that calls nox, so with the locked packages and nothing else."""

import os
import sys
import sysconfig
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.stop_on_first_error = False
CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # one thread a worker; a GPU of the machine is not used


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, imports and format with ruff, and the Dockerfile with hadolint."""
    session.run(sys.executable, "-m", "ruff", "check", ".")
    session.run(sys.executable, "-m", "ruff", "format", "--check", ".")
    session.run(str(Path(sys.executable).with_name("hadolint")), "docker/Dockerfile", external=True)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types in recipe/ with mypy."""
    session.run(sys.executable, "-m", "mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """pytest on the CPU, a worker for each core: tiny real objects, only hardware is mocked."""
    workers = ["-n", "auto", "--dist", "worksteal"]
    session.run(sys.executable, "-m", "pytest", *workers, *session.posargs, env=CPU)


@nox.session
def demo(session: nox.Session) -> None:
    """Run `make demo` from scratch, compare its numbers with the README, run it again, let lm-eval ask the model."""
    session.run(
        sys.executable, "-m", "pytest", "tests/demo", *session.posargs, env={"LM_EVAL_PYTHON": _lm_eval(session)}
    )


def _lm_eval(session: nox.Session) -> str:
    """The Python of a separate environment: lm-eval from its own lock, the rest from the locked packages."""
    folder, lock = Path(".nox/lm_eval").resolve(), Path("tests/demo/lm_eval.lock")
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.is_file() or ready.read_text(encoding="utf-8") != lock.read_text(encoding="utf-8"):
        session.run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder))
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "locked.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--target", str(packages)]
        session.run(sys.executable, "-m", "pip", "install", *options, "-r", str(lock))
        ready.write_text(lock.read_text(encoding="utf-8"), encoding="utf-8")
    return str(python)


@nox.session
def faults(session: nox.Session) -> None:
    """Kill stages, fill disks, send signals, flip bits. Long forms: -- --kills 1000, --full 500, --flips 1000."""
    folders, workers = ["tests/faults", "tests/hostile"], ["-n", "auto", "--dist", "worksteal"]
    session.run(sys.executable, "-m", "pytest", *folders, *workers, *session.posargs, env=CPU)


@nox.session
def cluster(session: nox.Session) -> None:
    """Prepare a corpus on a Dask cluster of three workers on loopback, with Dask from a lock of its own."""
    options = ["--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:", "--upgrade"]
    target, lock = str(Path(".nox/dask").resolve()), "docker/requirements-cluster.lock"
    session.run(sys.executable, "-m", "pip", "install", *options, "--target", target, "-r", lock)
    tests = "tests/conversations/pipeline/test_cluster.py"
    session.run(sys.executable, "-m", "pytest", tests, *session.posargs, env={"PYTHONPATH": target})


@nox.session(venv_backend="venv")
def jobs(session: nox.Session) -> None:
    """Check docker/jobs/ with the validators of Kubernetes and dstack and ShellCheck, in an environment of its own."""
    session.install("--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", "tests/jobs/requirements.lock")
    session.run("python", "-m", "pytest", "tests/jobs", *session.posargs)


@nox.session
def cuda(session: nox.Session) -> None:
    """Rehearse 7B and 13B on a stand-in for a P100 whose kernels compute nothing. Needs a C compiler."""
    session.run(sys.executable, "-m", "pytest", "tests/cuda", "-n", "auto", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Test on a GPU: int8, attention, memory against the plan; on a P100 also the 7B model. REQUIRE_GPU=1: no skips."""
    session.run(sys.executable, "-m", "pytest", "tests/gpu", *session.posargs)


@nox.session
def llamacpp(session: nox.Session) -> None:
    """Compile llama.cpp once (about 30 minutes on 2 cores, needs a C++ compiler) and let it read our GGUF files."""
    python = _build_llamacpp(session)
    session.run(sys.executable, "-m", "pytest", "tests/llamacpp", *session.posargs, env={"LLAMACPP_PYTHON": python})


def _build_llamacpp(session: nox.Session) -> str:
    """The Python of an environment of its own, from locks of its own; it is kept until they change."""
    folder = Path(".nox/llamacpp").resolve()
    python, ready = folder / "bin" / "python", folder / "ready"
    locks = [Path("tests/llamacpp") / name for name in ("build.lock", "llama.lock")]
    wanted = "".join(lock.read_text(encoding="utf-8") for lock in locks)
    if not ready.is_file() or ready.read_text(encoding="utf-8") != wanted:
        session.run(sys.executable, "-m", "venv", "--clear", str(folder))
        pip = [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
        session.run(*pip, "--only-binary", ":all:", "-r", str(locks[0]), external=True)
        path = f"{folder / 'bin'}:{os.environ['PATH']}"  # cmake and ninja
        session.run(*pip, "--no-build-isolation", "-r", str(locks[1]), external=True, env={"PATH": path})
        ready.write_text(wanted, encoding="utf-8")
    return str(python)


@nox.session
def image(session: nox.Session) -> None:
    """Build the real image, test it without network or rights, rebuild it, compare digests. Takes 25 GB of disk."""
    session.run("tests/image/run.sh", sys.executable, *session.posargs, external=True)
