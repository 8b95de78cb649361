"""The numbers of metrics.jsonl as a TensorBoard event file: `tensorboard --logdir runs` shows all runs."""

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TAGS = {"loss": "loss/train", "eval_loss": "loss/validation"}  # one chart for both
VERSION = "brain.Event:2"  # the first record of every event file


class EventFile:
    """An event file that holds exactly the rows of metrics.jsonl.

    It is written anew when a process begins: TensorBoard would show the steps after the last checkpoint of a killed
    process twice. So the events of a resumed run begin with the time of the resume.
    """

    def __init__(self, file: Path, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """rows: what is in metrics.jsonl already."""
        from tensorboardX.record_writer import RecordWriter

        file.parent.mkdir(parents=True, exist_ok=True)
        self._writer = RecordWriter(str(file))
        self._write(file_version=VERSION)
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write the finite numbers of a row of metrics.jsonl at its step."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=TAGS.get(name, name), simple_value=number)
            for name, number in row.items()
            if name != "step" and isinstance(number, int | float) and math.isfinite(number)
        ]
        self._write(step=row["step"], summary=Summary(value=values))
        self._writer.flush()

    def _write(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())
