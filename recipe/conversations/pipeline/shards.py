"""A corpus in parts of a few megabytes, each prepared by whichever process is free and written to a file of its own.

What a part holds follows from the sources alone, never from the number of processes; so the parts in order are the same
corpus on any machine, and a part that is finished stays finished when the work is interrupted.
"""

import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from recipe.conversations.cleaning.accounting import Account, Drop, account
from recipe.conversations.cleaning.filters import Rules
from recipe.conversations.formats import detect
from recipe.conversations.formats.base import Format
from recipe.conversations.messages import Conversation
from recipe.conversations.pipeline import workers
from recipe.conversations.pipeline.counting import TokenCounter
from recipe.conversations.pipeline.prepare import Preparation, Prepared
from recipe.conversations.readers.json_stream import Record, Rejected
from recipe.conversations.tokens import Encoders
from recipe.core.errors import RecipeError

PART_BYTES, PART_RECORDS = 2 << 20, 2000
AHEAD = 2  # parts read for each process before it asks; what bounds memory


class KilledError(RecipeError):
    """A process died while it prepared a part; the finished parts are whole."""


@dataclass(frozen=True)
class Source:
    """A raw file, and the name under which its conversations are counted."""

    name: str
    path: Path
    format: str = ""  # "": told by looking at each record

    @property
    def layout(self) -> Format | None:
        return detect.named(self.format) if self.format else None


@dataclass(frozen=True)
class Job:
    """How every part is prepared."""

    encoders: Encoders
    template: str
    max_length: int
    rules: Rules
    seed: int


@dataclass(frozen=True)
class Part:
    """Records that are prepared together."""

    number: int
    source: Source
    first: int  # the number of its first record in the source
    ends: int = 0  # bytes of the source up to here, where it is counted in bytes
    records: list[Record | Rejected | Conversation] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """What is known of a conversation in a finished part: all but its text."""

    id: str
    place: float
    mark: str
    language: str
    turns: int
    samples: list[tuple[int, int, int, int]]  # bytes in the .samples file, tokens, trained tokens, turns


@dataclass(frozen=True)
class Finished:
    """What a part came to. Its samples lie beside it, each a JSON line without its `{"id": ..., `."""

    source: str
    rows: list[Row]
    account: Account
    rejected: list[Rejected]


def divide(sources: Iterable[Source], made: Sequence[Conversation] = ()) -> Iterator[Part]:
    """All records as parts, those of `made` first."""
    part = Part(0, Source(made[0].source if made else "", Path()), 0, records=list(made))
    if part.records:
        yield part
    for source in sources:
        part, size, ends = Part(part.number + bool(part.records), source, 0), 0, 0
        for number, record in enumerate(detect.raw_records(source.path, source.name)):
            if part.records and (size >= PART_BYTES or len(part.records) >= PART_RECORDS):
                yield replace(part, ends=ends)
                part, size = Part(part.number + 1, source, number), 0
            part.records.append(record)
            size += record.size
            ends = record.offset + record.size if record.size else 0
        if part.records:
            yield replace(part, ends=ends)


def prepare(
    parts: Iterable[Part], folder: Path, job: Job, processes: int, tell: Callable[[Part, int], object]
) -> Iterator[int]:
    """Prepare every part into `folder`, but for those that lie there already; their numbers in order.

    `tell` is called with each part that is done and how many conversations it held. Raises RecipeError where a process
    dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = iter(parts)
    first = list(itertools.islice(parts, 2))
    parts = itertools.chain(first, parts)
    if processes == 1 or len(first) < 2:
        worker = _Worker(job, folder)
        for part in parts:
            tell(part, worker.finish(part))
            yield part.number
        return
    with ProcessPoolExecutor(processes, workers.context(), _begin, (job, folder)) as pool:
        try:
            for part, count in _in_order(pool, parts, AHEAD * processes):
                tell(part, count)
                yield part.number
        except BrokenProcessPool:
            raise KilledError(
                "a process that prepares conversations was killed, probably for want of memory; the same command goes "
                "on after the last finished part, with --set corpus.processes=1 in a fraction of the memory"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, parts: Iterable[Part], ahead: int) -> Iterator[tuple[Part, int]]:
    """(part without its records, conversations in it) in order, at most `ahead` of them under way."""
    waiting: deque[tuple[Part, Future[int]]] = deque()
    for part in parts:
        with workers.uninterrupted():  # this may start a process
            waiting.append((replace(part, records=[]), pool.submit(_finish, part)))
        if len(waiting) >= ahead:
            done, count = waiting.popleft()
            yield done, count.result()
    for done, count in waiting:
        yield done, count.result()


class _Worker:
    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.counter = TokenCounter(job.encoders)  # its words are worth keeping from part to part

    def finish(self, part: Part) -> int:
        """Prepare a part, unless it lies there whole; how many conversations came in."""
        if (finished := read(self.folder, part.number)) is None:
            finished = self._prepare(part)
        return finished.account.conversations

    def _prepare(self, part: Part) -> Finished:
        job = self.job
        preparation = Preparation(self.counter, job.template, job.max_length, job.rules, job.seed)
        rows, sketches = [], []
        with open(file_of(self.folder, part.number, "samples"), "wb") as file:
            for prepared in filter(None, map(preparation.take, _conversations(part))):
                sizes = [file.write(line) for line in _lines(prepared)]
                rows.append(_row(prepared, sizes))
                sketches.append(prepared.sketch)
        if job.rules.near:
            file_of(self.folder, part.number, "sketches").write_bytes(b"".join(sketches))
        finished = Finished(part.source.name, rows, preparation.accounts[part.source.name], preparation.rejected)
        _write(self.folder, part.number, finished)
        return finished


_worker: _Worker  # of this process


def _begin(job: Job, folder: Path) -> None:
    global _worker
    workers.follow_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process, as many processes as cores
    _worker = _Worker(job, folder)


def _finish(part: Part) -> int:
    return _worker.finish(part)


def _conversations(part: Part) -> Iterator[Conversation | Rejected]:
    layout = part.source.layout
    for number, record in enumerate(part.records, start=part.first):
        if isinstance(record, Conversation):
            yield record
        else:
            yield from detect.conversations(record, number, part.source.name, layout)


def _lines(prepared: Prepared) -> Iterator[bytes]:
    for sample in prepared.samples:
        messages = [{"role": message.role, "content": message.content} for message in sample.messages]
        line = json.dumps({"source": prepared.conversation.source, "messages": messages}, ensure_ascii=False)
        yield line.removeprefix("{").encode() + b"\n"


def _row(prepared: Prepared, sizes: Sequence[int]) -> Row:
    samples = [
        (size, sample.tokens, sample.trained, len(sample.messages))
        for size, sample in zip(sizes, prepared.samples, strict=True)
    ]
    mark = prepared.mark[:16].hex()
    return Row(prepared.conversation.id, prepared.place, mark, prepared.language, prepared.turns, samples)


def file_of(folder: Path, number: int, kind: Literal["index", "samples", "sketches"]) -> Path:
    """Where a part's index, samples or sketches lie."""
    return folder / f"{number:06}.{kind}"


def _write(folder: Path, number: int, finished: Finished) -> None:
    """The index is written last and whole: a part that has one is finished."""
    values = {
        "source": finished.source,
        "rows": [list(vars(row).values()) for row in finished.rows],
        "account": finished.account.as_dict(),
        "rejected": [{**asdict(item), "reason": item.reason.name} for item in finished.rejected],
    }
    path = file_of(folder, number, "index")
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values), encoding="utf-8")
    os.replace(partial, path)


def read(folder: Path, number: int) -> Finished | None:
    """A finished part; None where it is not finished, or its samples are not those it was finished with."""
    try:
        values = json.loads(file_of(folder, number, "index").read_text(encoding="utf-8"))
        size = file_of(folder, number, "samples").stat().st_size
    except (OSError, ValueError):
        return None
    rows = [Row(*row) for row in values["rows"]]
    if size != sum(sample[0] for row in rows for sample in row.samples):
        return None
    rejected = [Rejected(**{**item, "reason": Drop[item["reason"]]}) for item in values["rejected"]]
    return Finished(values["source"], rows, account(values["account"]), rejected)
