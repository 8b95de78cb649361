"""docker/image.sh around an engine that only writes down what it is told: which engine, which flags, which sentence."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "awk", "basename", "cut", "cat", "date", "dirname", "git", "gzip", "head", "id", "mkdir", "mv", "rm")
TOOLS += ("sed", "sha256sum", "tee")
# Answers as an engine that works and has the image; DAEMON=down: not even `info`; IMAGE_THERE=no: no such image;
# IN_USE=rm or prune: a container keeps it, or a stage of it, from being removed.
ENGINE = """#!/bin/bash
printf '%s\\n' "$(basename "$0") $*" >>"$CALLS"
case $1-${2:-} in
  info-*) [ "${DAEMON:-up}" = up ] || [ "$(basename "$0")" != docker ] ;;
  image-inspect) [ "${IMAGE_THERE:-yes}" = yes ] && case $* in *Size*) echo 5000000 ;; *) echo sha256:0 ;; esac ;;
  image-rm | image-prune) [ "${IN_USE:-}" != "$2" ] ;;
  save-*) [ "${SAVES:-yes}" = yes ] && echo layers ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the script needs, and a PATH of the tools it uses and no engine."""
    (tmp_path / "docker").mkdir()
    for name in ("image.sh", "pins.toml", "requirements.lock"):
        shutil.copy(ROOT / "docker" / name, tmp_path / "docker" / name)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def engine(checkout: Path, *names: str) -> None:
    for name in names:
        (checkout / "bin" / name).write_text(ENGINE)
        (checkout / "bin" / name).chmod(0o755)


def run(checkout: Path, *command: str, **environment: str) -> tuple[subprocess.CompletedProcess, str]:
    """(what the script said, the engine's last call)"""
    calls = checkout / "calls"
    given = {"PATH": str(checkout / "bin"), "CALLS": str(calls), "HOME": str(checkout), **environment}
    done = subprocess.run([checkout / "docker/image.sh", *command], env=given, capture_output=True, text=True)
    return done, calls.read_text().splitlines()[-1] if calls.is_file() else ""


def test_docker_is_taken_where_its_daemon_answers_else_podman(checkout):
    engine(checkout, "docker", "podman")
    assert run(checkout, "run", "help")[1].startswith("docker run ")
    assert run(checkout, "run", "help", DAEMON="down")[1].startswith("podman run ")


def test_without_an_engine_it_is_one_sentence_and_unfit(checkout):
    done, _ = run(checkout, "build")
    assert done.returncode == 3
    assert done.stderr.startswith("error: found neither a docker") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "card"), [("docker", "--gpus all"), ("podman", "--device nvidia.com/gpu=all")])
def test_a_target_runs_with_the_card_the_folders_and_no_other_rights(checkout, name, card):
    engine(checkout, name)
    (checkout / "bin" / "nvidia-smi").symlink_to(shutil.which("true"))
    (checkout / "my.toml").write_text("")
    _, call = run(checkout, "run", "train", "CONFIG=my.toml")
    assert card in call and call.endswith(" vicuna-p100 train CONFIG=my.toml")
    for folder in ("weights", "data", "runs"):
        assert f"--volume {checkout}/{folder}:/workspace/{folder} " in call and (checkout / folder).is_dir()
    assert f"--volume {checkout}/my.toml:/workspace/my.toml:ro " in call
    assert f"--user {os.getuid()}:{os.getgid()}" in call
    for flag in ("--network none", "--read-only", "--cap-drop ALL", "--security-opt no-new-privileges"):
        assert flag in call


def test_without_a_card_it_says_so_and_what_downloads_has_a_network(checkout):
    engine(checkout, "docker")
    done, call = run(checkout, "run", "demo")
    assert "--network" not in call
    if not Path("/dev/nvidiactl").exists():
        assert "--gpus" not in call and "running on the CPU" in done.stderr


@pytest.mark.parametrize("command", [("run", "train"), ("shell",), ("save",)])
def test_without_the_image_it_is_one_sentence(checkout, command):
    engine(checkout, "podman")
    done, _ = run(checkout, *command, IMAGE_THERE="no")
    assert done.returncode == 1
    assert done.stderr.startswith("error: found no image vicuna-p100: run make image first")


def test_save_leaves_a_tarball_and_its_hash_or_nothing(checkout):
    engine(checkout, "podman")
    done, _ = run(checkout, "save", SAVES="no")
    assert done.returncode == 1 and "could not be saved" in done.stderr and not any((checkout / "dist").iterdir())
    done, _ = run(checkout, "save")
    assert done.returncode == 0
    file, checksum = sorted((checkout / "dist").iterdir())
    assert subprocess.run(["gzip", "-dc", file], capture_output=True, check=True).stdout == b"layers\n"
    subprocess.run(["sha256sum", "--check", "--quiet", checksum.name], cwd=checkout / "dist", check=True)


@pytest.mark.parametrize("in_use", ["", "rm", "prune"])
def test_verify_builds_again_from_nothing_also_beside_a_container_that_uses_the_image(checkout, in_use):
    engine(checkout, "podman")
    done, _ = run(checkout, "verify", IN_USE=in_use)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("same digest twice: sha256:0\n")
    builds = [call for call in (checkout / "calls").read_text().splitlines() if call.startswith("podman build ")]
    assert all("--label org.opencontainers.image.revision=unknown" in call for call in builds)
    assert len(builds) == 2 and "--no-cache" in builds[1] and "--no-cache" not in builds[0]
    assert ("not all of vicuna-p100 could be removed, so the disk holds both" in done.stderr) == bool(in_use)


def test_the_root_image_is_the_first_of_the_pins_by_digest_or_the_one_that_is_named(checkout):
    engine(checkout, "podman")
    assert "@sha256:" in run(checkout, "root_image")[0].stdout
    assert run(checkout, "root_image", ROOT_IMAGE="mine:1")[0].stdout == "mine:1\n"


def test_an_unknown_command_is_a_usage_error(checkout):
    done, _ = run(checkout, "bild")
    assert done.returncode == 2 and "expected build, verify, save, shell or run TARGET" in done.stderr
