"""Speed and memory of preparing a ShareGPT corpus, beside the usual pipeline; prints one JSON object.

    python tests/bench/corpus.py --file sharegpt.json --tokenizer tokenizer.model [--speed-only]

`--file` is a real ShareGPT dump (a JSON array; it may be cut off), `--tokenizer` LLaMA's sentencepiece model. The usual
pipeline is html.parser and markdownify over a process pool, then a slow tokenizer that splits at turns, each step
writing a file for the next; markdownify comes into a throwaway folder by pip. `--scale N` also prepares a file of N
conversations, made by repeating the real ones under other ids and with another first word, and measures the peak memory
of all processes together (shared pages once); `--speed-only` leaves that out.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
MARKDOWNIFY = ("markdownify==0.14.1", "beautifulsoup4==4.12.3")
MAX_LENGTH = 2048
LIMIT_GB, TIMES = 1.5, 5


def records(file: Path, count: int) -> Iterator[dict[str, Any]]:
    from recipe.conversations.jsonstream import Record, records

    found = (item.value for item in records(file) if isinstance(item, Record))
    for _, record in zip(range(count), found, strict=False):
        yield record


def write_sample(source: Path, target: Path, count: int) -> int:
    """The first `count` conversations as a file; how many characters their turns have."""
    kept = list(records(source, count))
    target.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
    return sum(len(turn["value"]) for record in kept for turn in record["conversations"])


def write_large(source: Path, target: Path, count: int) -> int:
    """`count` conversations, the real ones over and over; bytes."""
    written, copy = 0, 0
    with open(target, "w", encoding="utf-8") as file:
        while written < count:
            for record in records(source, count - written):
                if record["conversations"]:
                    record["id"] = f"{record['id']}-{copy}"
                    record["conversations"][0]["value"] = f"({copy}) {record['conversations'][0]['value']}"
                file.write(("[\n" if not written else ",\n") + json.dumps(record, ensure_ascii=False))
                written += 1
            copy += 1
        file.write("\n]\n")
    return target.stat().st_size


def make_base(model: Path, folder: Path) -> None:
    """A folder with the tokenizer as `recipe.convert` leaves it."""
    from transformers import LlamaTokenizerFast

    LlamaTokenizerFast(vocab_file=str(model), legacy=True, add_prefix_space=True).save_pretrained(folder)


def ours(raw: Path, base: Path, output: Path) -> dict[str, float]:
    """The stage as a command."""
    command = [sys.executable, "-m", "recipe.corpus", "--source", str(raw), "--tokenizer", str(base), "--output"]
    return measure([*command, str(output)], dict(os.environ))


def usual(raw: Path, model: Path, folder: Path) -> dict[str, float]:
    """The usual pipeline, in a process of its own that finds markdownify in `folder`."""
    packages = folder / "packages"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages), *MARKDOWNIFY], check=True
    )
    paths = os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, __file__, "--usual", str(raw), str(model), str(folder)]
    return measure(command, {**os.environ, "PYTHONPATH": paths})


def measure(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Of a command with its children: seconds, seconds of work (which other load changes less), and the most memory at
    once, shared pages divided among those that share them.

    Work is read from every process while it lives: the fork server's children are nobody's to wait for, so that the
    kernel's sum over waited-for children leaves them out.
    """
    import psutil

    peak, work = 0, dict[int, float]()
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                times = one.cpu_times()
                work[one.pid] = times.user + times.system
                total += one.memory_full_info().pss
        peak = max(peak, total)
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{command[1:3]} ended with exit code {process.returncode}")
    seconds = time.monotonic() - started
    return {"seconds": seconds, "cpu_seconds": sum(work.values()), "peak_memory_gb": peak / 1e9}


def run_usual(raw: Path, model: Path, folder: Path) -> None:
    """Clean, then split: each loads everything, works over a process pool and writes everything."""
    from transformers import LlamaTokenizer

    global tokenizer
    for step, chunk, source, target in (
        (clean_one, 16, raw, folder / "clean.json"),
        (split_one, 64, folder / "clean.json", folder / "split.json"),
    ):
        if step is split_one:
            tokenizer = LlamaTokenizer(str(model), legacy=True)
        items = json.loads(source.read_text(encoding="utf-8"))
        with ProcessPoolExecutor() as pool:  # by fork, so the tokenizer is there
            results = list(pool.map(step, items, chunksize=chunk))
        target.write_text(json.dumps(results, indent=2, ensure_ascii=False), encoding="utf-8")


tokenizer: Callable[[str], Any]


def clean_one(record: dict[str, Any]) -> dict[str, Any]:
    """Markup of the answers to Markdown; bs4 with html.parser is what markdownify uses."""
    import re
    import warnings

    import markdownify

    warnings.simplefilter("ignore")  # bs4 has an opinion on most turns

    for turn in record["conversations"]:
        if turn["from"] == "gpt":
            text = re.sub(r"</?(?:div|span)[^>]*>", "", turn["value"])
            with contextlib.suppress(Exception):  # real turns make it fail in several ways
                text = markdownify.markdownify(text).strip()
            turn["value"] = re.sub(r"Copy code\n?|^\d+ / \d+\n", "", text)
    return record


def split_one(record: dict[str, Any]) -> list[list[int]]:
    """Borders between pairs at which the conversation is cut to MAX_LENGTH tokens."""
    turns = record["conversations"]
    lengths = [len(tokenizer(turn["value"]).input_ids) + 6 for turn in turns]
    borders, start, size = [], 0, 0
    for index in range(0, len(turns) - 1, 2):
        pair = lengths[index] + lengths[index + 1]
        if size + pair > MAX_LENGTH and size:
            borders.append([start, index])
            start, size = index, 0
        size += pair
    return [*borders, [start, len(turns)]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="a real ShareGPT dump")
    parser.add_argument("--tokenizer", type=Path, help="LLaMA's tokenizer.model")
    parser.add_argument("--conversations", type=int, default=17_000, help="how many both pipelines get (default 17000)")
    parser.add_argument("--scale", type=int, default=90_000, help="conversations of the large file (default 90000)")
    parser.add_argument("--speed-only", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the files go for a while (default: the system's)")
    parser.add_argument("--usual", nargs=3, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.usual:
        run_usual(*args.usual)
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        make_base(args.tokenizer, folder / "base")
        characters = write_sample(args.file, folder / "raw.json", args.conversations)
        theirs = usual(folder / "raw.json", args.tokenizer, folder)
        mine = ours(folder / "raw.json", folder / "base", folder / "out")
        result: dict[str, Any] = {
            "conversations": args.conversations,
            "characters": characters,
            "cores": len(os.sched_getaffinity(0)),
            "usual": rounded(theirs) | {"conversations_per_second": round(args.conversations / theirs["seconds"])},
            "ours": rounded(mine) | {"conversations_per_second": round(args.conversations / mine["seconds"])},
            "ratio": round(theirs["seconds"] / mine["seconds"], 2),
            "cpu_ratio": round(theirs["cpu_seconds"] / mine["cpu_seconds"], 2),
        }
        good = result["ratio"] >= TIMES
        if not args.speed_only:
            size = write_large(args.file, folder / "large.json", args.scale)
            large = ours(folder / "large.json", folder / "base", folder / "large")
            result["large"] = rounded(large) | {
                "conversations": args.scale,
                "megabytes": round(size / 1e6),
                "conversations_per_second": round(args.scale / large["seconds"]),
                "limit_gb": LIMIT_GB,
            }
            good = good and large["peak_memory_gb"] <= LIMIT_GB
    print(json.dumps(result))
    return 0 if good else 1


def rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(number, 2) for name, number in numbers.items()}


if __name__ == "__main__":
    sys.exit(main())
