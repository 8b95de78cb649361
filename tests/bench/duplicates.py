"""Measure the search for near-duplicates at growing numbers of synthetic conversations; prints one JSON object.

    python tests/bench/duplicates.py [--counts 10000 100000 1000000] [--limit-mb 200] [--base FOLDER]

Each count runs in a process of its own. `mb` is what the search adds to the process's largest resident set, `limit_mb`
the data (heap and anonymous maps) that the kernel allows it beyond what it holds when it begins: with more the search
fails. The signatures are made up: one conversation in five is near an earlier one, and one key in each band is in one
conversation of a hundred. With `--base`, a converted base, the whole corpus stage prepares as many synthetic
conversations of 40 words instead: seconds and the peak memory of all its processes together.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import corpus

from recipe.conversations.cleaning.duplicates import BANDS, HASHES, SIGNATURE, near_duplicates

CHUNK = 2000  # as many as a shard has at most
FULL = 2**63


def signatures(count: int) -> Iterator[np.ndarray]:
    """Arrays of `CHUNK` signatures; a near-duplicate has four changed bands, and so an eighth of other low bytes."""
    for start in range(0, count, CHUNK):
        rng, size = np.random.default_rng(start), min(CHUNK, count - start)
        out = np.zeros(size, SIGNATURE)
        out["bands"] = rng.integers(0, FULL, (size, BANDS), np.uint64)
        out["low"] = rng.integers(0, 256, (size, HASHES), np.uint8)
        copies = np.flatnonzero(rng.random(size) < 0.2)
        first = np.random.default_rng(int(rng.integers(0, start // CHUNK + 1)) * CHUNK)  # a chunk up to this one, again
        bands = first.integers(0, FULL, (min(CHUNK, count), BANDS), np.uint64)
        low = first.integers(0, 256, (min(CHUNK, count), HASHES), np.uint8)
        of = rng.integers(0, len(bands), len(copies))
        out["bands"][copies, 4:], out["low"][copies, HASHES // 8 :] = bands[of, 4:], low[of, HASHES // 8 :]
        out["bands"][::100] = 1
        yield out


def measure(count: int, limit_mb: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        held, data = _status("VmRSS"), _status("VmData")
        resource.setrlimit(resource.RLIMIT_DATA, ((data + limit_mb * 1024) << 10,) * 2)
        start = time.perf_counter()
        found = near_duplicates(signatures(count), count, 0.7, Path(folder))
        seconds = time.perf_counter() - start
        return {
            "conversations": count,
            "near_duplicates": int(found.sum()),
            "seconds": round(seconds, 1),
            "mb": round((_status("VmHWM") - held) / 1024),
            "limit_mb": limit_mb,
        }


def write_conversations(path: Path, count: int) -> None:
    """`count` conversations of 40 words; one in five is one of the first 20,000 with another word."""
    rng, first = np.random.default_rng(0), list[list[int]]()
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            if first and rng.random() < 0.2:
                words = list(first[int(rng.integers(len(first)))])
                words[int(rng.integers(40))] = int(rng.integers(5000))
            else:
                words = rng.integers(0, 5000, 40).tolist()
                first += [words] if len(first) < 20_000 else []
            text = [f"w{word}" for word in words]
            turns = [{"from": "human", "value": " ".join(text[:15])}, {"from": "gpt", "value": " ".join(text[15:])}]
            file.write(json.dumps({"id": f"c{number}", "conversations": turns}) + "\n")


def prepare(count: int, base: Path) -> dict[str, Any]:
    """Measure the corpus stage with duplicates = near."""
    with tempfile.TemporaryDirectory() as name:
        raw, output = Path(name) / "raw.jsonl", Path(name) / "out"
        write_conversations(raw, count)
        command = [sys.executable, "-m", "recipe.corpus", "--source", str(raw), "--tokenizer", str(base)]
        found = corpus.measure([*command, "--set", "corpus.duplicates=near", "--output", str(output)], dict(os.environ))
        results = json.loads((output / "manifest.json").read_text(encoding="utf-8"))["results"]
    ((_, account),) = results["sources"].items()
    near = account["conversations"]["dropped"]["near_duplicate"]
    return {"conversations": count, "near_duplicates": near, **corpus.rounded(found)}


def _status(name: str) -> int:
    """A number of this process in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--limit-mb", type=int, default=200)
    parser.add_argument("--base", type=Path, help="a converted base: measure the whole corpus stage")
    args = parser.parse_args()
    if args.base:
        print(json.dumps({"corpus": [prepare(count, args.base) for count in args.counts]}, indent=1))
        return 0
    if len(args.counts) == 1:
        print(json.dumps(measure(args.counts[0], args.limit_mb)))
        return 0
    command = [sys.executable, __file__, "--limit-mb", str(args.limit_mb), "--counts"]
    rows = [subprocess.run([*command, str(count)], check=True, capture_output=True).stdout for count in args.counts]
    print(json.dumps({"duplicates": list(map(json.loads, rows))}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
