"""What some stages need around them: servers to download from, a client, typed questions, a second process."""

import contextlib
import functools
import io
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from recipe.core.cli import entry
from tests.downloads import server as servers
from tests.downloads import test_hub as hub
from tests.downloads import test_meta as meta
from tests.faults.child import DEFECT
from tests.forks import free_port

TYPED = "Who are you?\n/save talk.jsonl\n"
GRACE = 5  # seconds in which the other process of a killed run may end by itself; torchrun then ends it
Setup = Callable[[], Any]


@contextlib.contextmanager
def start_servers() -> Iterator[dict[str, str]]:
    """Stage -> address of the server on loopback from which it downloads."""
    with servers.serve(hub.Handler) as place, servers.serve() as mirror:
        place.files = {hub.resolve(name): content for name, content in hub.FILES.items()}
        place.files[f"/api/models/own/toy/revision/{hub.COMMIT}"] = hub.describe(hub.FILES)
        mirror.files = {f"/{path}": content for path, content in meta.release().items()}
        yield {"hub": place.url, "meta": mirror.url}


@contextlib.contextmanager
def around(stage: str, main: Callable[[], int], addresses: Mapping[str, str]) -> Iterator[Setup]:
    """Hold what is around a stage while it runs; yields what its process calls first."""
    if stage == "gpus":
        with second_process(main) as setup:
            yield setup
        return
    setups: dict[str, Setup] = {
        "hub": functools.partial(use_hub, addresses["hub"]),
        "meta": lambda: os.environ.update(META_URL=f"{addresses['meta']}/*?Policy=p"),
        "serve": ask_when_it_serves,
        "chat": type_questions,
        "rehearse": measure_little,
    }
    yield setups.get(stage, int)


def use_hub(address: str) -> None:
    """One file at a time: with several threads the number of calls would be another one each time."""
    import huggingface_hub
    from huggingface_hub import constants, file_download

    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.DOWNLOAD_CHUNK_SIZE = address, False, 10_000
    constants.HUGGINGFACE_CO_URL_TEMPLATE = file_download.HUGGINGFACE_CO_URL_TEMPLATE = template
    os.environ["HF_HUB_OFFLINE"] = "0"
    huggingface_hub.snapshot_download = functools.partial(huggingface_hub.snapshot_download, max_workers=1)


def type_questions() -> None:
    sys.stdin = io.StringIO(TYPED)


def measure_little() -> None:
    from recipe import rehearse

    rehearse.DISK_BYTES = 1 << 20


def ask_when_it_serves() -> None:
    """A thread of the server's process asks one question and then ends the server as `kill` does."""
    from recipe.serving import server

    real = server.bind

    def bind(host: str, port: int) -> Any:
        bound = real(host, port)
        threading.Thread(target=ask, args=bound.getsockname()[:2], daemon=True).start()
        return bound

    server.bind = bind


def ask(host: str, port: int) -> None:
    body = {"model": "model", "max_tokens": 2, "messages": [{"role": "user", "content": "Who are you?"}]}
    address, kind = f"http://{host}:{port}/v1/chat/completions", {"Content-Type": "application/json"}
    try:
        while True:
            try:
                with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), kind)) as answer:
                    assert json.load(answer)["usage"]["completion_tokens"]
                break
            except urllib.error.HTTPError:
                raise
            except OSError:  # it does not listen yet
                time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:
        traceback.print_exc()
        os._exit(DEFECT)


@contextlib.contextmanager
def second_process(main: Callable[[], int]) -> Iterator[Setup]:
    """Yields what forks the second of two processes of a run, and waits until it has ended, as torchrun does."""
    read, write = os.pipe()

    def fork() -> None:
        port, parent = free_port(), os.fork()
        rank = int(not parent)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
        if rank:
            os.write(write, str(os.getpid()).encode())
            code = DEFECT
            try:
                code = entry(main)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    try:
        yield fork
    finally:
        os.close(write)  # now the second process alone holds it: its end is the end of the pipe
        number = os.read(read, 20)
        if number and not (select.select([read], [], [], GRACE)[0] and not os.read(read, 1)):
            os.kill(int(number), signal.SIGKILL)
            os.read(read, 1)
        os.close(read)
