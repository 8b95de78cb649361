"""Near-duplicates: MinHash signatures, computed per conversation and compared at the end through files.

A signature is 256 bytes: 16 band keys of 8 bytes, equal in one band with probability J^8 for two texts whose sets of
three-word runs have the Jaccard similarity J; and 128 bytes for an estimate of J (b-bit MinHash, Li & König 2010).

The comparison keeps 9 bytes a conversation in memory. Everything else goes through files, in parts of a fixed size:
first by band and key, to find for each key the first conversation that has it, then by the number of the conversation.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from recipe.conversations.messages import Message

HASHES, BANDS, RUN = 128, 16, 3
PART = 1 << 18  # records that are sorted at once: a few tens of megabytes
MOST_FILES = 512  # open at once, under the usual limit of 1,024
SIGNATURE = np.dtype([("bands", np.uint64, BANDS), ("low", np.uint8, HASHES)])
KEY = np.dtype([("key", np.uint64), ("index", np.int64)])
PAIR = np.dtype([("index", np.int64), ("first", np.int64)])  # a conversation, and the first one with its key in a band


def signature(messages: Sequence[Message]) -> bytes:
    """One `SIGNATURE` of a conversation's text, letter case and white space aside."""
    from rensa import RMinHash

    words = " ".join(message.content for message in messages).casefold().split()
    # Scripts without spaces make few long words: there, runs of characters tell more.
    units: Sequence[str] = words if len(words) > 1 and sum(map(len, words)) < 20 * len(words) else "".join(words)
    minhash = RMinHash(num_perm=HASHES, seed=42)
    minhash.update(["\0".join(units[at : at + RUN]) for at in range(max(1, len(units) - RUN + 1))])
    digest = np.array(minhash.digest(), dtype=np.uint32)
    out = np.zeros(1, SIGNATURE)
    bands = (hashlib.blake2b(band.tobytes(), digest_size=8).digest() for band in digest.reshape(BANDS, -1))
    out["bands"] = np.frombuffer(b"".join(bands), np.uint64)
    out["low"] = digest.astype(np.uint8)
    return out.tobytes()


def near_duplicates(
    signatures: Iterable[npt.NDArray[np.void]], count: int, threshold: float, folder: Path
) -> npt.NDArray[np.bool_]:
    """For each of `count` conversations: whether an earlier one that is kept is nearly the same.

    signatures: arrays of `SIGNATURE`, in order, `count` in all. Needs at most 640 bytes a conversation on the disk of
    `folder` while it runs, and 9 in memory beside a fixed amount.
    """
    near = np.zeros(count, np.bool_)
    stays_for = np.arange(count)  # the conversation that stays in each one's place
    with tempfile.TemporaryDirectory(dir=folder) as name, open(Path(name) / "low", "w+b") as low:
        pairs = _write_pairs(_write_keys(signatures, count, Path(name), low), count, Path(name))
        for index, firsts in _by_index(pairs):
            own = _low_bytes(low, index)
            for other in dict.fromkeys(stays_for[firsts].tolist()):
                if _similarity(own, _low_bytes(low, other)) >= threshold:
                    stays_for[index], near[index] = other, True
                    break
    return near


class _Parts:
    """Records in numbered files: written in any order of the numbers, read part by part."""

    def __init__(self, folder: Path, name: str, count: int, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.paths = [folder / f"{name}{number}" for number in range(count)]
        self._files = [open(path, "wb") for path in self.paths]  # noqa: SIM115 - closed by `close`

    def add(self, numbers: npt.NDArray[np.int64], records: npt.NDArray[np.void]) -> None:
        """Append each of `records` to the part of its number; records of one part keep their order."""
        order = np.argsort(numbers, kind="stable")
        chosen, starts = np.unique(numbers[order], return_index=True)
        for number, part in zip(chosen, np.split(records[order], starts)[1:], strict=True):
            self._files[number].write(part.tobytes())

    def close(self) -> None:
        for file in self._files:
            file.close()

    def read(self, number: int) -> Iterator[npt.NDArray[np.void]]:
        """The records of a part, at most `PART` at once."""
        with open(self.paths[number], "rb") as file:
            while len(records := np.fromfile(file, self.dtype, PART)):
                yield records


def _write_keys(signatures: Iterable[npt.NDArray[np.void]], count: int, folder: Path, low: BinaryIO) -> _Parts:
    """Every band key with its conversation; each part holds a range of one band's keys, in the order of the bands.

    The low bytes of all signatures go to `low`.
    """
    ranges = min(-(-max(count, 1) // PART), MOST_FILES // BANDS)
    parts, start = _Parts(folder, "keys", BANDS * ranges, KEY), 0
    for chunk in signatures:
        low.write(chunk["low"].tobytes())
        records = np.empty((BANDS, len(chunk)), KEY)
        records["key"] = chunk["bands"].T
        records["index"] = np.arange(start, start + len(chunk))
        within = (records["key"] % np.uint64(ranges)).astype(np.int64)  # keys are hashes: ranges fill evenly
        parts.add((np.arange(BANDS)[:, None] * ranges + within).ravel(), records.ravel())
        start += len(chunk)
    parts.close()
    low.flush()
    return parts


def _write_pairs(keys: _Parts, count: int, folder: Path) -> _Parts:
    """Every conversation that is not the first with its key; each part holds a range of conversations."""
    size = max(PART // BANDS, -(-count // MOST_FILES))
    pairs = _Parts(folder, "pairs", -(-max(count, 1) // size), PAIR)
    for number, path in enumerate(keys.paths):
        for found in _firsts(keys.read(number)):
            pairs.add(found["index"] // size, found)
        path.unlink()
    pairs.close()
    return pairs


def _firsts(chunks: Iterable[npt.NDArray[np.void]]) -> Iterator[npt.NDArray[np.void]]:
    """`PAIR`s of the records whose key an earlier one has. In memory: the different keys, and one chunk."""
    known, firsts = np.empty(0, np.uint64), np.empty(0, np.int64)  # keys, sorted, and the first index of each
    for chunk in chunks:
        keys, at, inverse = np.unique(chunk["key"], return_index=True, return_inverse=True)
        first = chunk["index"][at]
        places = np.asarray(np.searchsorted(known, keys))
        old = places < len(known)
        old[old] = known[places[old]] == keys[old]
        first[old] = firsts[places[old]]
        pairs = np.empty(len(chunk), PAIR)
        pairs["index"], pairs["first"] = chunk["index"], first[inverse]
        yield pairs[pairs["first"] < pairs["index"]]
        known = np.insert(known, places[~old], keys[~old])
        firsts = np.insert(firsts, places[~old], first[~old])


def _by_index(pairs: _Parts) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """(a conversation, the first ones with its keys in the order of the bands), in the order of the conversations."""
    for number in range(len(pairs.paths)):
        found = np.concatenate([np.empty(0, PAIR), *pairs.read(number)])
        found = found[np.argsort(found["index"], kind="stable")]  # bands were written in order, and stay so
        indices, starts = np.unique(found["index"], return_index=True)
        yield from zip(indices.tolist(), np.split(found["first"], starts)[1:], strict=True)


def _low_bytes(low: BinaryIO, index: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(os.pread(low.fileno(), HASHES, index * HASHES), np.uint8)


def _similarity(one: npt.NDArray[np.uint8], two: npt.NDArray[np.uint8]) -> float:
    """Jaccard's, from the share of equal low bytes, of which one in 256 is equal by chance."""
    return (float(np.mean(one == two)) - 1 / 256) / (1 - 1 / 256)
