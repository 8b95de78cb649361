"""One thread generates. Two answers take turns token by token, a few wait, and the rest are refused."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

ACTIVE = 2  # answers that take turns: base and tuned of one question stream side by side
WAITING = 16

Produce = Callable[[threading.Event], Iterator[Any]]


class Busy(Exception):
    """The queue is full."""


class Job:
    """Work in progress: items from an iterator, delivered to a callback in the worker's thread.

    `deliver` receives every item, then None, or an exception in place of the rest.
    """

    def __init__(self, produce: Produce, deliver: Callable[[Any], None]) -> None:
        self.cancelled = threading.Event()
        self._items, self._deliver = produce(self.cancelled), deliver

    def step(self) -> bool:
        """Deliver the next item. False after the last one."""
        try:
            self._deliver(next(self._items))
        except StopIteration:
            self._deliver(None)
            return False
        except Exception as error:
            self._deliver(error)
            return False
        return True


class Worker:
    """The generating thread and its bounded queue."""

    def __init__(self, active: int = ACTIVE, waiting: int = WAITING) -> None:
        self._limits = active, waiting
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, produce: Produce, deliver: Callable[[Any], None]) -> Job:
        """Queue a job; set its `cancelled` to stop it. Raises Busy where too many wait already."""
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.cancelled.is_set())
            if self._closing or len(self._waiting) + len(self._active) >= sum(self._limits):
                raise Busy
            job = Job(produce, deliver)
            self._waiting.append(job)
            self._changed.notify()
            return job

    @property
    def load(self) -> tuple[int, int]:
        """How many jobs are being generated, and how many wait."""
        with self._changed:
            return len(self._active), sum(not job.cancelled.is_set() for job in self._waiting)

    def cancel(self) -> None:
        """Accept nothing more and stop every job after its current token."""
        with self._changed:
            self._closing = True
            for job in (*self._active, *self._waiting):
                job.cancelled.set()
            self._changed.notify()

    def close(self) -> None:
        """`cancel`, and wait for the thread to end."""
        self.cancel()
        self._thread.join()

    def _run(self) -> None:
        while self._admit():
            for job in list(self._active):
                if not job.step():
                    with self._changed:
                        self._active.remove(job)

    def _admit(self) -> bool:
        """Wait for work and move it from the queue. False when the worker is closed and nothing is left."""
        with self._changed:
            while not self._active and not self._waiting and not self._closing:
                self._changed.wait()
            while self._waiting and len(self._active) < self._limits[0]:
                self._active.append(self._waiting.popleft())
            return bool(self._active) or not self._closing
