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
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "tests" / "bench"
sys.path[:0] = [str(ROOT), str(BENCH), str(ROOT / "tests" / "reproduce")]
CONFIG, CURVES, SPEEDS = BENCH / "race.toml", BENCH / "results" / "race", BENCH / "results" / "race-speed.json"
COLOURS = ("#6b7280", "#2563eb", "#16a34a", "#d97706", "#dc2626", "#9333ea", "#0891b2", "#be185d", "#65a30d", "#78350f")
SEEDS = (0, 1, 2)
TUNING_SEED = 100  # rates are chosen on another seed than those of the race
EVAL_PACKS = 8  # a validation every 8 packs, 3,300 tokens; at least 2 steps
MLP = ["gate_proj", "up_proj", "down_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", *MLP]


@dataclass(frozen=True)
class Way:
    """Settings that differ from the published ones (race.toml), and the learning rates to choose from."""

    about: str
    rates: tuple[float, ...]
    packs: int = 16  # of 512 tokens, a step
    targets: Sequence[str] = ("q_proj", "v_proj")
    rank: int = 8
    scale: float = 2.0  # alpha / rank; rsLoRA (arXiv:2312.03732) multiplies it by sqrt(rank)
    epochs: float = 0.5  # the learning rate decays to zero over these passes
    dropout: float = 0.05
    change: str = ""  # of race_change.py

    def settings(self, seed: int, rate: float, epochs: float | None = None) -> dict[str, Any]:
        return {
            "lora.rank": self.rank,
            "lora.alpha": round(self.scale * self.rank),
            "lora.dropout": self.dropout,
            "lora.target_modules": json.dumps(list(self.targets)),
            "train.gradient_accumulation_steps": self.packs,
            "train.eval_steps": max(2, EVAL_PACKS // self.packs),
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
    from reference import prepare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "tune", "run", "speed", "table"), default="all")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), metavar="N")
    parser.add_argument("--json", action="store_true", help="print the numbers instead of the table")
    args = parser.parse_args()
    if args.what in ("all", "tune", "run"):
        prepare(CONFIG)
    if args.what in ("all", "tune"):
        for name in args.ways:
            tune(name)
    if args.what in ("all", "run"):
        for seed in args.seeds:
            for name in args.ways:
                race(name, seed)
    if args.what in ("all", "speed"):
        measure_speed(args.ways)
    if args.what in ("all", "table"):
        found = summary()
        for suffix, text in (
            ("json", json.dumps(found, indent=1) + "\n"),
            ("md", markdown(found)),
            ("svg", picture(found)),
        ):
            (CURVES.parent / f"race.{suffix}").write_text(text, encoding="utf-8")
        print(json.dumps(found) if args.json else markdown(found))
    return 0


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
        command = f"python tests/bench/race.py tune --ways {name}"
        raise SystemExit(f"error: no learning rate was chosen for {name} yet: run `{command}` first")
    return min(trials, key=lambda one: one["loss"])["learning_rate"]


def race(name: str, seed: int) -> dict[str, Any]:
    return curve(name, seed, chosen_rate(name), WAYS[name].epochs)


def curve(name: str, seed: int, rate: float, epochs: float) -> dict[str, Any]:
    """The run's validation losses by tokens: read from its file, or made now."""
    file = CURVES / f"{name}-{rate:g}-{epochs:g}-seed{seed}.json"
    if not file.is_file():
        print(f"== {file.stem}", file=sys.stderr, flush=True)
        runs = ROOT / ".cache" / "race" / "runs" / file.stem
        results = train(WAYS[name].settings(seed, rate, epochs) | {"runs": runs}, WAYS[name].change)
        one = {"way": name, "seed": seed, "learning_rate": rate, "epochs": epochs, "tokens": results["tokens"]}
        one |= {"loss": results["validation_loss"], "losses": losses(runs / "race" / "latest", results)}
        CURVES.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(one) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def train(settings: Mapping[str, Any], change: str = "") -> dict[str, Any]:
    """The results of a run with these settings in place of the published ones, and a change of race_change.py."""
    from reference import execute

    stage = (BENCH / "race_change.py", change) if change else ("-m", "recipe.train")
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return json.loads(execute(*stage, "--config", CONFIG, *options, "--json"))["results"]


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


def measure_speed(ways: Sequence[str], turns: int = 2) -> None:
    """Tokens per second of short runs of these ways, which take turns; they are added to those measured before."""
    from run import machine

    speeds = read_speeds()
    for turn in range(turns):
        for name in ways if turn % 2 else reversed(ways):
            with tempfile.TemporaryDirectory() as runs:
                settings = WAYS[name].settings(turn, 3e-4, TRIAL) | {"runs": runs, "train.eval_steps": 0}
                train(settings, WAYS[name].change)
                last = metrics(Path(runs) / "race" / "latest", "loss")[-1]
            speeds.setdefault(name, []).append({"tokens_per_second": last["tokens_per_second"], "machine": machine()})
            SPEEDS.write_text(json.dumps(speeds, indent=1) + "\n", encoding="utf-8")


def read_speeds() -> dict[str, list[dict[str, Any]]]:
    return json.loads(SPEEDS.read_text(encoding="utf-8")) if SPEEDS.is_file() else {}


def metrics(run: Path, key: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that have `key`."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if key in row]


def summary() -> dict[str, Any]:
    """Target and, for each way that raced, tokens and seconds to it and its final loss: a value for each seed."""
    raced = [one for one in curves() if one["seed"] != TUNING_SEED]
    goals = [one for one in raced if one["way"] == "published"]
    if not goals:
        raise SystemExit("error: there is no target yet: run `python tests/bench/race.py run --ways published` first")
    target, whole = statistics.mean(one["loss"] for one in goals), goals[0]["tokens"]
    rows = {name: row(name, [one for one in raced if one["way"] == name], target, whole) for name in WAYS}
    return {
        "target": round(target, 4),
        "target_of_seeds": [round(one["loss"], 4) for one in goals],
        "tokens": whole,
        "ways": {name: row for name, row in rows.items() if row},
    }


def row(name: str, runs: Sequence[Mapping[str, Any]], target: float, whole: int) -> dict[str, Any]:
    """One way's numbers; empty if it did not race. The published way needs the whole pass: its end is the target."""
    if not runs:
        return {}
    needed = [whole if name == "published" else tokens_to(one["losses"], target) for one in runs]
    reached = [one for one in needed if one]
    found: dict[str, Any] = {
        "about": WAYS[name].about,
        "learning_rate": runs[0]["learning_rate"],
        "seeds": len(runs),
        "loss": [round(one["loss"], 4) for one in runs],
        "tokens": needed,
        "times_fewer": [round(whole / one, 2) for one in reached],
    }
    speeds = [one["tokens_per_second"] for one in read_speeds().get(name, [])]
    if speeds and len(reached) == len(runs):
        found["seconds"] = round(statistics.mean(reached) / statistics.mean(speeds))
    return found


def tokens_to(losses: Sequence[tuple[int, float]], target: float) -> int | None:
    """Tokens at which the validation loss first reaches `target`, by a straight line between two validations.

    None if it does not. The first validation counts as it is: the loss before it is not known.
    """
    before: tuple[int, float] | None = None
    for tokens, loss in losses:
        if loss <= target:
            if before is None:
                return tokens
            share = (before[1] - target) / (before[1] - loss)
            return round(before[0] + share * (tokens - before[0]))
        before = (tokens, loss)
    return None


def markdown(found: Mapping[str, Any]) -> str:
    from table import table

    head = ["way", "learning rate", "seeds", "tokens to the target", "times fewer", "seconds", "loss at its end"]
    rows = []
    for name, one in found["ways"].items():
        reached = [tokens for tokens in one["tokens"] if tokens]
        missed = len(one["tokens"]) - len(reached)
        tokens = span(reached, "{:,.0f}") + (f", {missed} not reached" if missed else "")
        seconds = f"{one['seconds']:,}" if "seconds" in one else "not yet measured"
        cells = [tokens, span(one["times_fewer"], "{:.1f}"), seconds, span(one["loss"], "{:.3f}")]
        rows.append([f"{name}: {one['about']}", f"{one['learning_rate']:g}", one["seeds"], *cells])
    seeds = ", ".join(map(str, found["target_of_seeds"]))
    note = f"Target: a validation loss of {found['target']:.4f}, the mean of the published settings after one pass over"
    note += (
        f"\n{found['tokens']:,} tokens ({seeds}). Means over the seeds (lowest to highest). Other ways end after half"
    )
    note += "\na pass unless their name says otherwise."
    return f"{table(head, rows)}\n{note}\n"


def span(values: Sequence[float], form: str) -> str:
    """The mean, and the lowest and highest if there are several."""
    if not values:
        return "-"
    mean = form.format(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def picture(found: Mapping[str, Any]) -> str:
    """Validation loss by tokens, a curve for each run of the race, the target as a line; an SVG for any page."""
    runs = [one for one in curves() if one["seed"] != TUNING_SEED]
    width, height, left = 720, 360, 60
    most = max(one["tokens"] for one in runs)
    points = [loss for one in runs for _, loss in one["losses"]]
    low, high = min(points), max(points)

    def place(tokens: float, loss: float) -> str:
        x = left + (width - left - 150) * tokens / most
        return f"{x:.0f},{20 + (height - 60) * (high - loss) / (high - low):.0f}"

    out, names = [], list(found["ways"])
    for one in runs:
        colour = COLOURS[names.index(one["way"]) % len(COLOURS)]
        line = " ".join(place(*point) for point in one["losses"])
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    goal = found["target"]
    out.append(f'<polyline points="{place(0, goal)} {place(most, goal)}" stroke="#6b7280" stroke-dasharray="4"/>')
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        out.append(f'<text x="{width - 140}" y="{30 + 20 * number}" style="fill: {colour}">{name}</text>')
    labels = [(left, height - 20, "0 tokens"), (width - 220, height - 20, f"{most:,} tokens")]
    labels += [(0, 24, f"{high:.2f}"), (0, height - 40, f"{low:.2f}")]
    out += [f'<text x="{x}" y="{y}">{text}</text>' for x, y, text in labels]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        "<title>Validation loss by tokens trained on, for each way</title>"
        f"<style>text {{ font: 13px sans-serif; fill: #6b7280 }}</style>{''.join(out)}</svg>\n"
    )


if __name__ == "__main__":
    from recipe.core.cli import entry

    sys.exit(entry(main))
