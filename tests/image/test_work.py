"""A whole tiny run inside the image, and builds with a wrong root image or lock."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from recipe.core import config as configs
from recipe.core.config import Base, Config, Corpus, Lora, Source, Train


def tiny(checkout: Path, source: Path) -> None:
    """Write a two-layer model, eight conversations and a config of three optimizer steps below `checkout`."""
    shutil.copytree(source, checkout / "weights" / "raw")
    turns = [{"from": "human", "value": "Which colour is it?"}, {"from": "gpt", "value": "It is blue."}]
    records = [
        {"id": f"c{number}", "conversations": [*turns, {**turns[0], "value": f"And {number}?"}, turns[1]]}
        for number in range(8)
    ]
    (checkout / "data").mkdir()
    (checkout / "data" / "raw.json").write_text(json.dumps(records))
    run = Config(
        name="tiny",
        base=Base(source="weights/raw", path="weights/tiny"),
        corpus=Corpus(source=(Source(path="data/raw.json"),), path="data/tiny", max_length=256, val_fraction=0.25),
        lora=Lora(rank=4, alpha=8),
        train=Train(epochs=3.0, gradient_accumulation_steps=1, save_steps=1, eval_steps=0),
    )
    (checkout / "tiny.toml").write_text(configs.dump(run))


def make(checkout: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *command], cwd=checkout, capture_output=True, text=True, timeout=600)


def test_converts_prepares_and_trains_in_mounted_folders(image, checkout, tiny_source):
    tiny(checkout, tiny_source)
    converted = make(checkout, "run-convert", "CONFIG=tiny.toml")
    assert converted.returncode == 0, converted.stderr
    assert (checkout / "weights" / "tiny" / "manifest.json").stat().st_uid == os.getuid(), "its owner is the caller"

    # The other stages run as the image's own user, who has no account on this machine.
    mounts = tuple(f"--volume={checkout / name}:/workspace/{name}" for name in ("weights", "data", "runs", "tiny.toml"))
    subprocess.run(["chmod", "-R", "a+rwX", "weights", "data", "runs", "tiny.toml"], cwd=checkout, check=True)
    for stage in ("corpus", "train"):
        done = image.run(stage, "CONFIG=tiny.toml", flags=mounts)
        assert done.returncode == 0, done.stderr
    run = checkout / "runs" / "tiny" / "latest"
    assert (run / "adapter" / "adapter_model.safetensors").stat().st_size > 1000
    assert json.loads((run / "manifest.json").read_text())["stage"] == "train"

    served = image.python("-c", ASK_SERVER, flags=mounts)
    assert served.returncode == 0, served.stdout + served.stderr
    assert json.loads(served.stdout) == {"models": ["tuned", "base"], "page": True, "answered": True, "exit": 0}
    assert "Which colour" not in served.stderr


# Inside the image, on its read-only root and with no network but loopback: start the server, ask it, stop it.
ASK_SERVER = """
import json, signal, subprocess, sys, urllib.request
command = [sys.executable, "-m", "recipe.serve", "--run", "runs/tiny/latest", "--port", "0"]
server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
for line in server.stderr:
    print(line, end="", file=sys.stderr)
    if line.startswith("serving"):
        break
address = line.split(" at ")[1].split(" ")[0]
def get(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=60).read().decode()
models = [model["id"] for model in json.loads(get("v1/models"))["data"]]
messages = [{"role": "user", "content": "Which colour is thing 1?"}]
body = {"model": "tuned", "messages": messages, "max_tokens": 4}
answer = json.loads(get("v1/chat/completions", body))
page = "<textarea" in get("")
server.send_signal(signal.SIGTERM)
sys.stderr.write(server.stderr.read())
answered = answer["usage"]["completion_tokens"] > 0
print(json.dumps({"models": models, "page": page, "answered": answered, "exit": server.wait(60)}))
"""


def build(checkout: Path, **environment: str) -> subprocess.CompletedProcess:
    named = {**os.environ, "IMAGE": "localhost/vicuna-p100:bad", **environment}
    return subprocess.run(
        ["docker/image.sh", "build"], cwd=checkout, env=named, capture_output=True, text=True, timeout=600
    )


def test_a_cached_build_is_labelled_by_its_own_checkout(image, checkout):
    """podman reuses a cached LABEL of a Dockerfile even when the build arguments in it change."""
    again, revision = (
        type(image)("localhost/vicuna-p100:again"),
        '{{index .Labels "org.opencontainers.image.revision"}}',
    )
    done = build(checkout, IMAGE=again.name, GIT_DIR="/nowhere")
    assert done.returncode == 0, done.stderr
    assert again.inspect(revision) == "unknown", "this build saw no git history"
    assert image.inspect(revision) != "unknown"
    subprocess.run(["podman", "image", "rm", again.name], check=True, stdout=subprocess.DEVNULL)


def errors(done: subprocess.CompletedProcess) -> list[str]:
    """The error lines of the build itself: it also echoes its instructions, which contain the sentence."""
    return [line for line in done.stderr.splitlines() if re.match(r"error: ", line)]


def test_root_image_without_python_is_one_sentence(image, checkout):
    root = os.environ.get("ROOT_IMAGE") or image.inspect('{{index .Labels "org.opencontainers.image.base.name"}}')
    bare = f"FROM {root}\nRUN rm -rf /etc/apt/sources.list /etc/apt/sources.list.d\n"
    subprocess.run(["podman", "build", "--quiet", "--tag=localhost/no-python", "-"], input=bare, text=True, check=True)
    done = build(checkout, ROOT_IMAGE="localhost/no-python")
    assert done.returncode != 0
    (error,) = errors(done)
    assert "ROOT_IMAGE=localhost/no-python has no Python 3.11" in error and "docker/pins.toml" in error


def test_lock_with_a_missing_hash_is_one_sentence(image, checkout):
    lock = checkout / "docker" / "requirements.lock"
    lock.write_text(re.sub(r"(?m)^(peft==\S+) \\\n(    --hash=\S+( \\)?\n)+", r"\1\n", lock.read_text()))
    done = build(checkout)
    assert done.returncode != 0
    (error,) = errors(done)
    assert re.match(r"error: peft==\S+ has no --hash in docker/requirements.lock", error) and "make lock" in error


def test_libraries_without_device_code_fail_the_build(image, checkout):
    """The audit is a build step: here it asks the real lock for an architecture that no library has code for."""
    pins = checkout / "docker" / "pins.toml"
    pins.write_text(pins.read_text().replace("required_sm = 60", "required_sm = 62"))
    done = build(checkout)
    assert done.returncode != 0
    assert "torch: no sm_62: torch/lib/libtorch_cuda.so has SASS for 37 50 60 70 75 80 86" in done.stderr
    assert subprocess.run(["podman", "image", "exists", "localhost/vicuna-p100:bad"]).returncode == 1


def test_unknown_root_image_is_one_sentence(image, checkout):
    done = build(checkout, ROOT_IMAGE="localhost/absent:1")
    assert done.returncode == 1
    (error,) = errors(done)
    assert error.startswith("error: cannot pull the root image localhost/absent:1")
