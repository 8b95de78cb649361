"""Damage to files, drawn at random: bits, cuts, repetitions, and what parsers stumble over."""

import random
from collections.abc import Sequence

ODD = [
    b"\0", b"\xff", b"\xed\xa0\x80", b"\x1b[2J", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"null", b"true", b"{}",
    b"[]", b'""', b"[[[[[[[[", b'{"a":', b'"\\ud800"', b"9" * 30, b"9" * 5000, b"\xff" * 8, b"\x7f\xff\xff\xff",
    b"../../x", b"<script>", b"<a" * 50, b"\r\n", b"\xef\xbb\xbf", b"\\", b'"',
]  # fmt: skip


def mutate(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """One of the seeds with one to five changes."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice((1, 2, 4, 8, 64)))
        kind = chance.randrange(8)
        if kind < 2 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            data[at:end] = b""
        elif kind == 3:
            data[at:at] = data[at:end] * chance.choice((1, 2, 40))
        elif kind == 4:
            data[at:end] = chance.choice(ODD)
        elif kind == 5:
            data[at:at] = chance.choice(ODD)
        elif kind == 6:
            data[at:end] = chance.randbytes(end - at)
        elif chance.random() < 0.2:
            del data[at:]
    return bytes(data)
