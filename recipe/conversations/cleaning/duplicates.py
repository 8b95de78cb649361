"""Near-duplicates: MinHash signatures, computed per conversation and compared all at once.

A signature is 256 bytes: 16 band keys of 8 bytes, equal in one band with probability J^8 for two texts whose sets of
three-word runs have the Jaccard similarity J; and 128 bytes for an estimate of J (b-bit MinHash, Li & König 2010).
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from recipe.conversations.messages import Message

HASHES, BANDS, RUN = 128, 16, 3
SIGNATURE = np.dtype([("bands", np.uint64, BANDS), ("low", np.uint8, HASHES)])


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


def near_duplicates(signatures: npt.NDArray[np.void], threshold: float) -> npt.NDArray[np.bool_]:
    """For each of the [n] `signatures`: whether an earlier conversation that is kept is nearly the same."""
    firsts = np.stack([_first_with_same_key(signatures["bands"][:, band]) for band in range(BANDS)], axis=1)
    order = np.arange(len(signatures))
    stays_for = order.copy()  # the conversation that stays in each one's place
    for index in np.flatnonzero((firsts < order[:, None]).any(axis=1)):
        for other in dict.fromkeys(stays_for[firsts[index]].tolist()):
            if other < index and _similarity(signatures["low"][index], signatures["low"][other]) >= threshold:
                stays_for[index] = other
                break
    return stays_for < order


def _first_with_same_key(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse]


def _similarity(one: npt.NDArray[np.uint8], two: npt.NDArray[np.uint8]) -> float:
    """Jaccard's, from the share of equal low bytes, of which one in 256 is equal by chance."""
    return (float(np.mean(one == two)) - 1 / 256) / (1 - 1 / 256)
