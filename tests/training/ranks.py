"""Starts the processes of runs as torchrun does, but as forks of one process that has imported everything once.

Reads one JSON object per line from stdin: `folder` for the messages, `arguments` of recipe.train for each process, and
optionally `kill`: [rank, step] of a process that dies in that step, `folders`: the working folder of each process, and
`checkouts`: the checkout whose files each process takes for its own code. Answers with the exit codes and the seconds
from the first end of a process to the last.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback

from recipe import train
from recipe.core import versions
from recipe.core.cli import entry
from recipe.training.trainer import LoraTrainer


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def die_in(step: int) -> None:
    real = LoraTrainer.get_batch_samples

    def get_batch_samples(self, *args):
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *args)

    LoraTrainer.get_batch_samples = get_batch_samples


def child(request: dict, rank: int, port: int) -> None:
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


def answer(request: dict) -> dict:
    port, pids = free_port(), []
    for rank in range(len(request["arguments"])):
        if not (pid := os.fork()):
            child(request, rank, port)
        pids.append(pid)
    codes, ends = {}, []
    for _ in pids:
        pid, status = os.wait()
        codes[pids.index(pid)] = os.waitstatus_to_exitcode(status)
        ends.append(time.monotonic())
    return {"codes": [codes[rank] for rank in range(len(pids))], "seconds": ends[-1] - ends[0]}


if __name__ == "__main__":
    import peft  # noqa: F401
    import torch
    import transformers.trainer  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
