"""A million damaged files: `python tests/hostile/fuzz.py --cases 1000000`, guided by coverage where atheris installs.

    pip install --target FOLDER --no-deps atheris==3.0.0, then PYTHONPATH=FOLDER

Every target has a process of its own, which ends, with the input, at any exception but a RecipeError. The counts go
into results/fuzz.json, each with its commit; targets that it holds already are left out.
"""

import argparse
import importlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parents[1] / "tests" / "faults")]


def fuzz(name: str, cases: int, guided: bool) -> None:
    """Try `cases` inputs on one target in this process. Raises what the target raises."""
    if not guided:
        targets, mutate = importlib.import_module("targets"), importlib.import_module("mutate").mutate
        seeds = targets.seeds()[name]
        for number in range(cases):
            targets.read(name, mutate(seeds, random.Random(f"{name} long {number}")))
        return
    import atheris

    with atheris.instrument_imports(include=["recipe"]):
        targets = importlib.import_module("targets")
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(targets.seeds()[name]):
            (Path(corpus) / str(number)).write_bytes(data)
        flags = [f"-runs={cases}", "-timeout=20", "-max_len=8192", "-verbosity=0", "-rss_limit_mb=4096"]
        flags.append(f"-artifact_prefix={tempfile.gettempdir()}/{name}-")
        atheris.Setup([sys.argv[0], *flags, corpus], lambda data: targets.read(name, data))
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000, help="inputs in all (default a million)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="targets at a time (default: one per core)")
    parser.add_argument("--target", help="one target, in this process")
    args = parser.parse_args()
    guided = importlib.util.find_spec("atheris") is not None
    if args.target:
        fuzz(args.target, args.cases, guided)
        return 0
    names = list(importlib.import_module("targets").TARGETS)
    share = -(-args.cases // len(names))
    results = HERE / "results" / "fuzz.json"
    found = json.loads(results.read_text())["targets"] if results.is_file() else {}
    longform = importlib.import_module("longform")
    left = [name for name in names if found.get(name, {}).get("cases", 0) < share]
    with ThreadPoolExecutor(args.jobs) as pool:
        started = [pool.submit(attempt, name, share, guided) for name in left]
        for done in as_completed(started):
            name, entry = done.result()
            found[name] = entry | {"commit": longform.commit()}
            print(name, entry, flush=True)
            right = sum(entry["cases"] for entry in found.values())
            result = {"tried": share * len(found), "right": right, "targets": found}
            longform.write(results, result)
    return int(any("defect" in entry for entry in found.values()))


def attempt(name: str, cases: int, guided: bool) -> tuple[str, dict[str, Any]]:
    """(name, what a process that tried this target found)"""
    start = time.monotonic()
    command = [sys.executable, __file__, "--target", name, "--cases", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    entry = {"cases": cases, "seconds": round(time.monotonic() - start), "by": "atheris" if guided else "random"}
    return name, entry | ({"cases": 0, "defect": done.stderr[-1000:]} if done.returncode else {})


if __name__ == "__main__":
    sys.exit(main())
