"""`recipe.train` in processes of its own: forks of one process that has imported everything once, which takes seconds.

That process reads one JSON object per line from stdin: `folder` for the messages, `arguments` of recipe.train for each
process, and optionally `kill`: [rank, step] of a process that dies in that step, `folders`: the working folder of each
process, and `checkouts`: the checkout whose files each process takes for its own code. Several processes are those of
one run, as torchrun starts them. The answer is the process ids, and when all have ended the exit codes and the seconds
from the first end to the last.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Forks:
    """Starts the processes of one run at a time."""

    def __init__(self) -> None:
        given = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
        given |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, env=given, stdin=pipe, stdout=pipe, bufsize=0
        )
        self.pids: list[int] = []

    def start(self, folder: Path, arguments: list[list[str]], **options: Any) -> list[int]:
        """The ids of the processes, whose messages go to `folder`/RANK.txt."""
        self.end()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        request = {"folder": str(folder), "arguments": arguments, **options}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.pids = json.loads(self.process.stdout.readline())
        return self.pids

    def ended(self, seconds: float = 0) -> bool:
        """Whether all processes have ended, perhaps only after some seconds."""
        return bool(select.select([self.process.stdout], [], [], seconds)[0])

    def wait(self) -> tuple[list[int], float, list[str]]:
        """Exit codes, the seconds from the first end of a process to the last, and the messages."""
        assert self.ended(240), "the processes do not end"
        result = json.loads(self.process.stdout.readline())
        self.pids = []
        files = [self.folder / f"{rank}.txt" for rank in range(len(result["codes"]))]
        return result["codes"], result["seconds"], [file.read_text() if file.is_file() else "" for file in files]

    def run(self, folder: Path, arguments: list[list[str]], **options: Any) -> tuple[list[int], float, list[str]]:
        self.start(folder, arguments, **options)
        return self.wait()

    def end(self) -> None:
        """Kill what a failed test left running."""
        if self.pids:
            for pid in self.pids if not self.ended() else []:
                os.kill(pid, signal.SIGKILL)
            self.wait()

    def close(self) -> None:
        self.end()
        self.process.stdin.close()
        self.process.wait()


def skip_flush(file: Any) -> None:
    """In place of `os.fsync`, which waits for the disk: nothing here loses power."""
    os.fstat(file if isinstance(file, int) else file.fileno())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def die_in(step: int) -> None:
    from recipe.training.trainer import LoraTrainer

    real = LoraTrainer.get_batch_samples

    def get_batch_samples(self, *args):
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *args)

    LoraTrainer.get_batch_samples = get_batch_samples


def child(request: dict, rank: int, port: int) -> None:
    from recipe import train
    from recipe.core import versions
    from recipe.core.cli import entry

    with open(f"{request['folder']}/{rank}.txt", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    size = len(request["arguments"])
    if size > 1:
        place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        os.environ |= {name: str(value) for name, value in place.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if "folders" in request:
        os.chdir(request["folders"][rank])
    if "checkouts" in request:
        versions.__file__ = f"{request['checkouts'][rank]}/recipe/core/versions.py"
    if request.get("kill", [None])[0] == rank:
        die_in(request["kill"][1])
    code = 99
    try:
        code = entry(lambda: train.main(request["arguments"][rank]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fork(request: dict) -> list[int]:
    port, pids = free_port(), []
    for rank in range(len(request["arguments"])):
        if not (pid := os.fork()):
            child(request, rank, port)
        pids.append(pid)
    return pids


def collect(pids: list[int]) -> dict:
    codes, ends = {}, []
    for _ in pids:
        pid, status = os.wait()
        codes[pids.index(pid)] = os.waitstatus_to_exitcode(status)
        ends.append(time.monotonic())
    return {"codes": [codes[rank] for rank in range(len(pids))], "seconds": ends[-1] - ends[0]}


def serve() -> None:
    import gc

    import peft  # noqa: F401
    import torch
    import transformers.trainer  # noqa: F401

    import recipe.training.setup
    import recipe.training.trainer  # noqa: F401

    torch.set_num_threads(1)
    os.fsync = skip_flush
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        pids = fork(json.loads(line))
        print(json.dumps(pids), flush=True)
        print(json.dumps(collect(pids)), flush=True)


if __name__ == "__main__":
    serve()
