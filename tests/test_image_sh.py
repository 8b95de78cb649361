"""docker/image.sh, with a stand-in engine that records its calls: which engine, which flags, which error."""

import fnmatch
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "awk", "basename", "cut", "cat", "date", "dirname", "git", "gzip", "head", "id", "mkdir", "mv", "rm")
TOOLS += ("sed", "sha256sum", "tee")
# Answers like a working engine that has the image. DAEMON=down: `info` fails; IMAGE_THERE=no: there is no such image;
# IN_USE=rm or prune: a container keeps the image, or one of its stages, from being removed.
ENGINE = """#!/bin/bash
printf '%s\\n' "$(basename "$0") $*" >>"$CALLS"
printf '%s\\0' "$@" >"$CALLS.arguments"
case $1-${2:-} in
  info-*) [ "${DAEMON:-up}" = up ] || [ "$(basename "$0")" != docker ] ;;
  image-inspect) [ "${IMAGE_THERE:-yes}" = yes ] && case $* in *Size*) echo 5000000 ;; *) echo sha256:0 ;; esac ;;
  image-rm | image-prune) [ "${IN_USE:-}" != "$2" ] ;;
  save-*) [ "${SAVES:-yes}" = yes ] && echo layers ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the script's files, and a folder for PATH that holds the tools it uses and no engine."""
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
    """The finished script and the engine's last call. The machine's own GPU is hidden: NVIDIA_DEVICE does not exist."""
    calls = checkout / "calls"
    given = {"PATH": str(checkout / "bin"), "CALLS": str(calls), "HOME": str(checkout)}
    given |= {"NVIDIA_DEVICE": str(checkout / "nvidiactl"), **environment}
    done = subprocess.run([checkout / "docker/image.sh", *command], env=given, capture_output=True, text=True)
    return done, calls.read_text().splitlines()[-1] if calls.is_file() else ""


def last_arguments(checkout: Path) -> list[str]:
    """The arguments of the engine's last call, one by one."""
    return (checkout / "calls.arguments").read_text().split("\0")[:-1]


def test_docker_is_used_if_its_daemon_answers_else_podman(checkout):
    engine(checkout, "docker", "podman")
    assert run(checkout, "run", "help")[1].startswith("docker run ")
    assert run(checkout, "run", "help", DAEMON="down")[1].startswith("podman run ")


def test_no_engine_is_one_sentence_and_exit_code_3(checkout):
    done, _ = run(checkout, "build")
    assert done.returncode == 3
    assert done.stderr.startswith("error: found neither a running docker") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "gpu"), [("docker", "--gpus all"), ("podman", "--device nvidia.com/gpu=all")])
@pytest.mark.parametrize("sign", ["nvidia-smi", "device file"])
def test_a_target_gets_the_gpu_and_no_other_rights(checkout, name, gpu, sign):
    engine(checkout, name)
    if sign == "nvidia-smi":
        (checkout / "bin" / "nvidia-smi").symlink_to(shutil.which("true"))
    else:
        (checkout / "nvidiactl").touch()
    done, call = run(checkout, "run", "train")
    assert gpu in call and call.endswith(" vicuna-p100 train") and not done.stderr
    assert f"--user {os.getuid()}:{os.getgid()}" in call
    for flag in ("--network none", "--read-only", "--cap-drop ALL", "--security-opt no-new-privileges", "--pids-limit"):
        assert flag in call


@pytest.mark.parametrize("found", ["sha256:0", "0"])
def test_a_target_is_told_the_digest_of_its_image(checkout, found):
    """docker and podman write it differently."""
    engine(checkout, "podman")
    script = checkout / "bin" / "podman"
    script.write_text(script.read_text().replace("echo sha256:0", f"echo {found}"))
    for command in (("run", "train"), ("shell",)):
        run(checkout, *command)
        arguments = last_arguments(checkout)
        assert arguments[arguments.index("RECIPE_IMAGE=sha256:0") - 1] == "--env"


def test_without_a_gpu_it_runs_on_the_cpu_and_says_so(checkout):
    engine(checkout, "docker")
    done, call = run(checkout, "run", "train")
    assert "--gpus" not in call and "running on the CPU" in done.stderr


def test_labels_are_switched_off_only_where_selinux_is_on(checkout):
    engine(checkout, "podman")
    for selinux, expected in ((checkout / "nothing", False), (checkout, True)):
        assert ("label=disable" in run(checkout, "run", "train", SELINUX=str(selinux))[1]) is expected


def test_only_targets_that_download_have_a_network(checkout):
    engine(checkout, "docker")
    for target in ("fetch", "demo"):
        assert "--network" not in run(checkout, "run", target)[1]
    for command in (("run", "train"), ("run", "help"), ("shell",)):
        assert "--network none" in run(checkout, *command)[1]
    assert "--network" not in run(checkout, "shell", NETWORK="1")[1]


def test_the_page_can_be_reached_from_this_machine(checkout):
    engine(checkout, "docker")
    call = run(checkout, "run", "serve", "RUN=runs/x/latest")[1]
    assert "--network host" in call and "--network none" not in call and "--read-only" in call


@pytest.mark.parametrize("target", ["test", "gpu-test", "bench", "image-save", "run-train"])
def test_a_target_that_the_image_cannot_run_is_refused(checkout, target):
    engine(checkout, "docker")
    done, call = run(checkout, "run", target)
    assert done.returncode == 2 and f"error: found run-{target}, expected a step of a run" in done.stderr
    assert not call.startswith("docker run")


def test_every_target_is_a_step_of_a_run_or_refused():
    """A new target of the Makefile belongs to one of the two."""
    steps = {"help", "pins", "doctor", "plan", "rehearse", "fetch", "weights", "data", "convert", "corpus", "train"}
    steps |= {
        "evaluate",
        "merge",
        "formats",
        "chat",
        "serve",
        "report",
        "runs",
        "runs-diff",
        "replay",
        "bundle",
        "demo",
    }
    targets = set(re.findall(r"^([a-z][a-z-]*):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    (line,) = re.findall(r"^ +(setup \|.*)\)$", (ROOT / "docker/image.sh").read_text(encoding="utf-8"), re.M)
    patterns = [pattern.strip() for pattern in line.split("|")]
    refused = {target for target in targets if any(fnmatch.fnmatch(target, pattern) for pattern in patterns)}
    assert targets - refused == steps


@pytest.mark.parametrize("name", ["my.toml", "a b/c:d$(touch canary)'.toml", "recipe/configs/x=y.toml"])
@pytest.mark.parametrize("absolute", [False, True])
def test_folders_and_config_are_mounted_whatever_their_names(checkout, name, absolute):
    engine(checkout, "podman")
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).touch()
    config = str(checkout / name) if absolute else name
    run(checkout, "run", "train", f"CONFIG={config}", "RUN=x y")
    arguments = last_arguments(checkout)
    for folder in ("weights", "data", "runs", "results"):
        assert f"type=bind,source={checkout}/{folder},target=/workspace/{folder}" in arguments
        assert (checkout / folder).is_dir()
    inside = config if absolute else f"/workspace/{name}"
    assert f"type=bind,source={checkout}/{name},target={inside},readonly" in arguments
    assert arguments[-2:] == ["vicuna-p100", "train"]
    assert arguments[arguments.index(f"CONFIG={config}") - 1] == arguments[arguments.index("RUN=x y") - 1] == "--env"


@pytest.mark.parametrize("name", ["a,readonly=false.toml", 'a".toml', "a\nb.toml"])
def test_a_config_that_no_mount_can_express_is_one_error(checkout, name):
    engine(checkout, "docker")
    (checkout / name).touch()
    done, call = run(checkout, "run", "train", f"CONFIG={name}")
    assert done.returncode == 2 and done.stderr.startswith("error: found a comma, a quote or a line break in ")
    assert not call.startswith("docker run")


@pytest.mark.parametrize("command", [("run", "train"), ("shell",), ("save",)])
def test_a_missing_image_is_one_sentence(checkout, command):
    engine(checkout, "podman")
    done, _ = run(checkout, *command, IMAGE_THERE="no")
    assert done.returncode == 1
    assert done.stderr.startswith("error: found no image vicuna-p100, expected one to run: run make image first")


def test_save_writes_tarball_and_hash_or_nothing(checkout):
    engine(checkout, "podman")
    done, _ = run(checkout, "save", SAVES="no")
    assert done.returncode == 1 and "could not save the image" in done.stderr and not any((checkout / "dist").iterdir())
    done, _ = run(checkout, "save")
    assert done.returncode == 0
    file, checksum = sorted((checkout / "dist").iterdir())
    assert subprocess.run(["gzip", "-dc", file], capture_output=True, check=True).stdout == b"layers\n"
    subprocess.run(["sha256sum", "--check", "--quiet", checksum.name], cwd=checkout / "dist", check=True)


@pytest.mark.parametrize("in_use", ["", "rm", "prune"])
def test_verify_builds_twice_even_if_the_image_is_in_use(checkout, in_use):
    engine(checkout, "podman")
    done, _ = run(checkout, "verify", IN_USE=in_use)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("same digest twice: sha256:0\n")
    builds = [call for call in (checkout / "calls").read_text().splitlines() if call.startswith("podman build ")]
    assert all("--label org.opencontainers.image.revision=unknown" in call for call in builds)
    assert len(builds) == 2 and "--no-cache" in builds[1] and "--no-cache" not in builds[0]
    assert ("could not remove all of vicuna-p100" in done.stderr) == bool(in_use)


def test_root_image_is_the_first_pin_or_the_named_one(checkout):
    engine(checkout, "podman")
    assert "@sha256:" in run(checkout, "root_image")[0].stdout
    assert run(checkout, "root_image", ROOT_IMAGE="mine:1")[0].stdout == "mine:1\n"


def test_an_unknown_command_is_a_usage_error(checkout):
    done, _ = run(checkout, "bild")
    assert done.returncode == 2 and "expected build, verify, save, shell or run TARGET" in done.stderr
