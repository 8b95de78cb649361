"""Compare speed, output and memory of the corpus stage with the usual pipeline; prints one JSON object, and a table of
both outputs on stderr. Exit code 0: at least five times as fast, at least as good, below 1.5 GB.

    python tests/bench/corpus.py --file sharegpt.json --tokenizer tokenizer.model [--only compare|memory]

`--file` is a real ShareGPT dump (a JSON array; it may be truncated), `--tokenizer` LLaMA's sentencepiece model. The
usual pipeline is that of `usual.py`: html.parser and markdownify over a process pool, then a slow tokenizer that splits
at turns; pip installs markdownify into a temporary folder. `--scale N` is the number of conversations in a large file,
made by repeating the real ones with other ids and another first word. On it, the peak memory of all processes together
is measured (shared pages count once).
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import quality  # noqa: E402
import usual as usual_way  # noqa: E402

MARKDOWNIFY = ("markdownify==0.11.6", "beautifulsoup4==4.12.3")
LIMIT_GB, TIMES = 1.5, 5


def records(file: Path, count: int) -> Iterator[dict[str, Any]]:
    from recipe.conversations.readers.json_stream import Record, records

    found = (item.value for item in records(file) if isinstance(item, Record))
    for _, record in zip(range(count), found, strict=False):
        yield record


def write_sample(source: Path, target: Path, count: int) -> tuple[int, int]:
    """Write the first `count` distinct conversations to `target`; returns their number and their characters."""
    unlike = {json.dumps(record["conversations"]): record for record in records(source, 2 * count)}
    kept = list(unlike.values())[:count]  # neither pipeline can lose a duplicate
    target.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
    return len(kept), sum(len(turn["value"]) for record in kept for turn in record["conversations"])


def write_large(source: Path, target: Path, count: int) -> int:
    """Write `count` conversations, the real ones repeated; returns the size in bytes."""
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
    """Write the tokenizer to `folder` as `recipe.convert` does."""
    from transformers import LlamaTokenizerFast

    LlamaTokenizerFast(vocab_file=str(model), legacy=True, add_prefix_space=True).save_pretrained(folder)


def ours(raw: Path, base: Path, output: Path) -> dict[str, float]:
    """Measure the corpus stage, run as a command."""
    source = f"corpus.source=[{{path={json.dumps(str(raw))}, html=true}}]"  # ShareGPT holds the HTML of chat pages
    command = [sys.executable, "-m", "recipe.corpus", "--set", source, "--tokenizer", str(base), "--output"]
    return measure([*command, str(output)], dict(os.environ))


def usual(raw: Path, model: Path, folder: Path) -> dict[str, float]:
    """Measure the usual pipeline in a process that finds markdownify in `folder`."""
    packages = folder / "packages"
    if not packages.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages)]
        subprocess.run([*pip, *MARKDOWNIFY], check=True)
    paths = os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, usual_way.__file__, str(raw), str(model), str(folder)]
    return measure(command, {**os.environ, "PYTHONPATH": paths})


def measure(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Run a command; returns seconds, CPU seconds (less affected by other load) and peak memory, children included. The
    memory is the proportional set size, which counts shared pages once.

    CPU time is read from each process while it lives: the kernel's sum over children leaves out those of the fork
    server, since nobody waits for them.
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


def raw_turns(file: Path) -> Iterator[tuple[str, list[str]]]:
    for record in json.loads(file.read_text(encoding="utf-8")):
        yield record["id"], [turn["value"] for turn in record["conversations"]]


def usual_turns(folder: Path) -> Iterator[tuple[str, list[str]]]:
    return raw_turns(folder / "split.json")


def our_turns(folder: Path) -> Iterator[tuple[str, list[str]]]:
    for part in ("train", "val"):
        with open(folder / f"{part}.jsonl", encoding="utf-8") as lines:
            for sample in map(json.loads, lines):
                name = sample["id"].split("#")[0].split("+")[0]  # without the suffixes for samples and repeated ids
                yield name, [message["content"] for message in sample["messages"]]


def compare_output(folder: Path) -> dict[str, dict[str, float]]:
    """`quality.shares` of both pipelines."""
    samples = json.loads((folder / "split.json").read_text(encoding="utf-8"))
    longest = json.loads((folder / "out" / "manifest.json").read_text(encoding="utf-8"))["results"]["lengths"]["max"]
    over = {"usual": sum(sample["tokens"] > usual_way.MAX_LENGTH for sample in samples), "ours": 0}
    assert longest <= usual_way.MAX_LENGTH
    made = {"usual": usual_turns(folder), "ours": our_turns(folder / "out")}
    return {
        side: quality.shares(raw_turns(folder / "raw.json"), turns) | {"samples_over_the_limit": over[side]}
        for side, turns in made.items()
    }


def compare(file: Path, model: Path, folder: Path, count: int, turns: int) -> tuple[dict[str, Any], bool]:
    """Speed and output of both on the first `count` conversations, and whether this recipe reaches its goals.

    The pipelines take turns, and the ratio is the median over turns: a machine's clock may change within minutes.
    """
    count, characters = write_sample(file, folder / "raw.json", count)
    sides: dict[str, list[dict[str, float]]] = {"usual": [], "ours": []}
    for _ in range(turns):
        shutil.rmtree(folder / "out", ignore_errors=True)
        sides["usual"].append(usual(folder / "raw.json", model, folder))
        sides["ours"].append(ours(folder / "raw.json", folder / "base", folder / "out"))
    pairs = list(zip(sides["usual"], sides["ours"], strict=True))
    ratios = [theirs["seconds"] / mine["seconds"] for theirs, mine in pairs]
    ratio = statistics.median(ratios)
    output = compare_output(folder)
    print(quality.table(output["ours"], output["usual"]), file=sys.stderr)
    result = {
        "conversations": count,
        "characters": characters,
        "cores": len(os.sched_getaffinity(0)),
        "turns": turns,
        **{side: middle(found) for side, found in sides.items()},
        "ratio": round(ratio, 2),
        "from_to": [round(min(ratios), 2), round(max(ratios), 2)],
        "cpu_ratio": round(statistics.median(theirs["cpu_seconds"] / mine["cpu_seconds"] for theirs, mine in pairs), 2),
        "output": output,
    }
    for side in sides:
        result[side]["conversations_per_second"] = round(count / result[side]["seconds"])
    return result, ratio >= TIMES and quality.at_least_as_good(output["ours"], output["usual"])


def middle(found: list[dict[str, float]]) -> dict[str, float]:
    """The median of each number over several turns."""
    return rounded({name: statistics.median(one[name] for one in found) for name in found[0]})


def fill_memory(file: Path, folder: Path, count: int) -> tuple[dict[str, Any], bool]:
    """Prepare a file of `count` conversations; the numbers, and whether memory stayed below the limit."""
    size = write_large(file, folder / "large.json", count)
    large = ours(folder / "large.json", folder / "base", folder / "large")
    result = rounded(large) | {
        "conversations": count,
        "megabytes": round(size / 1e6),
        "conversations_per_second": round(count / large["seconds"]),
        "limit_gb": LIMIT_GB,
    }
    return {"large": result}, large["peak_memory_gb"] <= LIMIT_GB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True, help="a real ShareGPT dump")
    parser.add_argument("--tokenizer", type=Path, required=True, help="LLaMA's tokenizer.model")
    parser.add_argument("--conversations", type=int, default=17_000, help="conversations per pipeline (default 17000)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each pipeline (default 3)")
    parser.add_argument("--scale", type=int, default=90_000, help="conversations of the large file (default 90000)")
    parser.add_argument("--only", choices=("compare", "memory"), help="run only one of the two measurements")
    parser.add_argument("--folder", type=Path, help="folder for temporary files (default: the system's)")
    args = parser.parse_args()
    result: dict[str, Any] = {}
    good = True
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        make_base(args.tokenizer, folder / "base")
        if args.only != "memory":
            found, is_good = compare(args.file, args.tokenizer, folder, args.conversations, args.turns)
            result, good = result | found, good and is_good
        if args.only != "compare":
            found, is_good = fill_memory(args.file, folder, args.scale)
            result, good = result | found, good and is_good
    print(json.dumps(result))
    return 0 if good else 1


def rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(number, 2) for name, number in numbers.items()}


if __name__ == "__main__":
    sys.exit(main())
