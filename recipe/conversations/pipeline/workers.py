"""Processes that help with the corpus: started early, deaf to Ctrl-C, which is their parent's to handle, and gone when
it is."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

WORK = "recipe.conversations.pipeline.shards"  # the module that they need, imported once for all


def get_ready() -> None:
    """Start the process that will fork the others: it takes half a second, in which this one can do something else.

    Ctrl-C is this process's to handle: that one is born deaf to it, or it would print a traceback while it starts.
    """
    forkserver.set_forkserver_preload([WORK])
    resource_tracker.ensure_running()  # which unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def context() -> BaseContext:
    """How a pool starts them: a fork of this process would inherit its threads' locks."""
    get_ready()
    return multiprocessing.get_context("forkserver")


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that end the work wait until the block is left: a process that gets half of its job prints a traceback.

    Only the main thread can be interrupted, and only it may set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for caught in came[:1]:
            signal.raise_signal(caught)


def follow_parent() -> None:
    """Called in such a process when it begins."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    """A parent that is killed cannot end its processes, which would wait for work for ever and keep their memory."""
    parent.join()
    os._exit(1)
