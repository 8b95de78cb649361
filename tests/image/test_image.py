"""What the image holds and what it does not: packages, rights, labels, files."""

import hashlib
import json
import os
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_locked_packages_import(image):
    code = (
        "import accelerate, bitsandbytes, datasets, gguf, peft, pynvml, safetensors, sentencepiece, transformers\n"
        "import torch\n"
        "print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"
    )
    done = image.python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2.0.1+cu117", "11.7", "False"]


def test_audit_is_clean(image):
    done = image.python("-m", "recipe.pins", "--json")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    audit = json.loads(done.stdout)
    torch = next(package for package in audit["packages"] if package["name"] == "torch")
    assert audit["verdict"] == "clean" and 60 in torch["sass"]


def test_user_is_not_root_and_owns_only_the_mounts(image):
    assert image.shell("id -u && id -g && whoami").stdout.split() == ["1000", "1000", "recipe"]
    writable = image.shell("find / -xdev -writable -not -type l", flags=("--read-only=false",)).stdout.split()
    of_everybody = ("/tmp", "/var/tmp", "/run/lock", "/dev", "/proc", "/sys")
    own = {path for path in writable if not path.startswith(of_everybody)}
    assert own == {f"/workspace/{name}" for name in ("weights", "data", "runs", "results")}


def test_root_file_system_is_read_only_except_tmp(image):
    done = image.shell("echo x > /workspace/runs/x || echo x > /tmp/x && cat /tmp/x")
    assert done.stdout == "x\n" and "Read-only file system" in done.stderr


def test_has_no_network(image):
    done = image.python("-c", "import socket; print([name for _, name in socket.if_nameindex()])")
    assert done.stdout == "['lo']\n"


def test_make_is_the_entry_point(image):
    listed = image.run()
    assert listed.returncode == 0 and "train the LoRA adapter" in listed.stdout
    assert image.run("report", "RUN=runs/none").returncode == 2
    assert "python" in image.run("--dry-run", "train").stdout and "pip" not in image.run("--dry-run", "train").stdout


def test_stop_signal_reaches_the_stage_and_waits(image, tmp_path):
    (tmp_path / "stage.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), print('saved'), sys.exit(0)))\n"
        "print('up')\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "stage.mk").write_text("stage:\n\t$(RECIPE_PYTHON) -B /mnt/stage.py\n")
    tmp_path.chmod(0o755)
    name = f"stop-{os.getpid()}"
    command = [
        "podman",
        "run",
        *image.careful,
        f"--name={name}",
        f"--volume={tmp_path}:/mnt:ro",
        image.name,
        "-f",
        "/mnt/stage.mk",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        lines = iter(running.stdout.readline, "")
        assert "up\n" in lines
        subprocess.run(["podman", "stop", "--time=30", name], check=True, stdout=subprocess.DEVNULL)
        assert "saved\n" in lines
    assert running.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("recipe.convert", "--help"), 0),
        (("recipe.convert", "--source", "weights/none", "--output", "weights/x"), 1),
        (("recipe.convert",), 2),
        (("recipe.train", "--set", "train.lr=1"), 2),
    ],
)
def test_exit_codes(image, command, code):
    done = image.python("-m", *command)
    assert done.returncode == code, done.stderr
    assert code == 0 or (done.stderr.startswith("error: ") and done.stderr.count("\n") == 1)


def test_labels_record_what_it_was_built_from(image):
    labels = json.loads(image.inspect("{{json .Labels}}"))
    lock = hashlib.sha256((ROOT / "docker" / "requirements.lock").read_bytes()).hexdigest()
    assert labels["vicuna-p100.lock.sha256"] == lock
    assert labels["org.opencontainers.image.revision"]
    assert labels["org.opencontainers.image.base.name"]
    assert labels["org.opencontainers.image.base.digest"].startswith("sha256:")


def test_driver_requirement_matches_the_pins(image):
    driver = tomllib.loads((ROOT / "docker" / "pins.toml").read_text())["driver"]
    environment = dict(line.split("=", 1) for line in json.loads(image.inspect("{{json .Config.Env}}")))
    wanted = f"driver>={driver['first_branch']},driver<{driver['last_branch'] + 10}"
    assert environment["NVIDIA_REQUIRE_CUDA"] == wanted
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert environment["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"


def test_default_root_image_is_the_first_pin():
    first = tomllib.loads((ROOT / "docker" / "pins.toml").read_text())["root_image"][0]
    pinned = first["name"] + (f"@{first['digest']}" if "digest" in first else "")
    assert f"\nARG ROOT_IMAGE={pinned}\n" in (ROOT / "docker" / "Dockerfile").read_text()


def test_no_secret_and_no_bytecode_remains(image):
    mark = os.environ["MARK"]
    script = (
        f"grep -rlF {mark} /etc /opt/venv/pyvenv.cfg /opt/venv/bin ~root /run /tmp /var /workspace 2>/dev/null\n"
        "find / -xdev -name '*.pyc' -not -path '/tmp/*' | head -n 5\n"
        "find /run/secrets /var/cache/pip ~root/.cache -type f -size +0 2>/dev/null"
    )
    as_root = image.shell(script, flags=("--user=0", "--cap-add=DAC_OVERRIDE"))
    assert as_root.stdout == ""
    assert mark not in image.inspect("{{json .}}")


def test_holds_the_tracked_code_and_no_data(image):
    listed = image.shell("cd /workspace && find . -type f | sort").stdout.split()
    tracked = subprocess.run(["git", "ls-files", "recipe"], cwd=ROOT, capture_output=True, text=True, check=True)
    others = {"Makefile", "LICENSE", "docker/pins.toml", "docker/requirements.lock"}
    assert set(listed) == {f"./{name}" for name in {*tracked.stdout.splitlines(), *others}}
