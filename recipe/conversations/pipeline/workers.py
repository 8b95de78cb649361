"""Worker processes: the fork server starts early, workers ignore SIGINT (the parent handles it) and die with the
parent."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

PRELOADED = "recipe.conversations.pipeline.shards"  # imported once, by the fork server


def start_fork_server() -> None:
    """Start the process that forks the workers. It takes half a second, in which the caller can do something else.

    SIGINT is blocked in it: Ctrl-C would make it print a traceback while it starts.
    """
    forkserver.set_forkserver_preload([PRELOADED])
    resource_tracker.ensure_running()  # which unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def context() -> BaseContext:
    """The start method of a pool. A plain fork of this process would inherit the locks of its threads."""
    start_fork_server()
    return multiprocessing.get_context("forkserver")


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the block is left: a worker that gets half of its job prints a traceback.

    Does nothing outside the main thread, which alone is interrupted and may set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for first in received[:1]:
            signal.raise_signal(first)


def follow_parent() -> None:
    """Called in a worker when it begins: ignore SIGINT, and exit when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _exit_after(parent: Any) -> None:
    """A parent that is killed cannot end its workers, which would wait for work for ever and keep their memory."""
    parent.join()
    os._exit(1)
