"""Race ways of LoRA training to one validation loss, on real conversations: `make race`. Takes hours; resumable.

    python tests/bench/race.py                              everything that is missing, then the table and the picture
    python tests/bench/race.py run --ways batch-2 --seeds 0    some of it; tune: choose each way's rate; table: no runs
    python tests/bench/race.py speed                        tokens per second of each way, taking turns (idle machine)
    python tests/bench/race.py --config FILE                the same on another base or data, with the file's name

The first target is the mean validation loss that the published settings (race.toml) end with after one pass over a
fixed set of ShareGPT conversations; the second is that of the same settings with a tuned learning rate. Each way trains
on the same set with a learning rate chosen on another seed. Tokens to a target are interpolated between validations.
Ways that do poorly in trials on another seed are dropped (successive halving): every way has a trial, the better half
are tuned further, and the better half of those race. The ways named by --ways skip this selection.
Every run's curve is a file of tests/bench/results/race; a run that is there is not made again. A run that was
interrupted resumes from its checkpoint.

Real conversations are downloaded to .cache/bench (they contain personal data: never publish or quote them).
"""

import argparse
import json
import statistics
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "tests" / "bench"
sys.path[:0] = [str(ROOT), str(BENCH), str(ROOT / "tests" / "reproduce")]
CONFIG = BENCH / "race.toml"
SEEDS = (0, 1, 2)
TUNING_SEED = 100  # rates are chosen on another seed than those of the race
EVAL_PACKS = 64  # a validation every 64 packs in a run of a whole pass, every 8 in one of an eighth; at least a step
MLP = ["gate_proj", "up_proj", "down_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", *MLP]


@dataclass(frozen=True)
class Way:
    """Settings that differ from the published ones (race.toml), and learning rates to try, most promising first."""

    about: str
    rates: tuple[float, ...]
    packs: int = 16  # of 512 tokens, a step
    targets: Sequence[str] = ("q_proj", "v_proj")
    rank: int = 8
    scale: float = (
        2.0  # alpha / rank; in rsLoRA (arXiv:2312.03732) it falls with the square root of the rank, not the rank
    )
    epochs: float = 0.125  # the learning rate decays to zero over these passes
    dropout: float = 0.05
    warmup: float = 0.03
    change: str = ""  # of race_change.py
    trial: float = 0.125  # passes of a run that chooses a rate

    def computed(self) -> tuple[Any, ...]:
        """What decides the speed of a pack: of the changes, only adapters in fewer layers compute something else."""
        return self.targets, self.rank, self.change == "upper-half"

    def settings(self, seed: int, rate: float, epochs: float | None = None) -> dict[str, Any]:
        return {
            "lora.rank": self.rank,
            "lora.alpha": round(self.scale * self.rank),
            "lora.dropout": self.dropout,
            "lora.target_modules": json.dumps(list(self.targets)),
            "train.gradient_accumulation_steps": self.packs,
            "train.eval_steps": max(1, round(EVAL_PACKS * (epochs or self.epochs)) // self.packs),
            "train.learning_rate": rate,
            "train.warmup_ratio": self.warmup,
            "train.epochs": epochs or self.epochs,
            "train.seed": seed,
        }


WAYS = {
    "published": Way("the settings of the published run: rank 8 on q and v, 16 packs a step", (3e-4,), epochs=1.0),
    "rate": Way("the same with a tuned learning rate", (2e-3, 4e-3, 8e-3), epochs=1.0, trial=0.25),
    "batch-8": Way("8 packs a step", (4e-3, 2e-3), packs=8),
    "batch-4": Way("4 packs a step", (4e-3, 2e-3), packs=4),
    "batch-2": Way("2 packs a step", (4e-3, 2e-3, 1e-3), packs=2),
    "mlp": Way("2 packs a step, adapters on the MLP", (4e-3, 2e-3), packs=2, targets=MLP),
    "all": Way("2 packs a step, adapters on all layers", (2e-3, 1e-3, 4e-3), packs=2, targets=ALL),
    "all-half": Way("as all, over half a pass", (2e-3,), packs=2, targets=ALL, epochs=0.5),
    "all-batch-4": Way("4 packs a step, adapters on all layers", (2e-3, 1e-3), packs=4, targets=ALL),
    "all-batch-1": Way("1 pack a step, adapters on all layers", (1e-3, 2e-3), packs=1, targets=ALL),
    "all-rank-16": Way("2 packs a step, rank 16 on all layers", (2e-3, 1e-3), packs=2, targets=ALL, rank=16),
    "all-rank-64": Way(
        "2 packs a step, rank 64 on all layers, scaled as rsLoRA does",
        (2e-3, 1e-3, 4e-3),
        packs=2,
        targets=ALL,
        rank=64,
        scale=2 / 8**0.5,
    ),
    "upper-half": Way(
        "as all, in the upper half of the layers", (4e-3, 2e-3), packs=2, targets=ALL, change="upper-half"
    ),
    "lora-plus": Way("as all, 16 times the rate for B", (5e-4, 2.5e-4), packs=2, targets=ALL, change="lora-plus"),
    "eva": Way("as all, A from its inputs (EVA with equal ranks)", (2e-3, 1e-3), packs=2, targets=ALL, change="eva"),
    "constant": Way("as all, the rate stays constant", (2e-3, 1e-3), packs=2, targets=ALL, change="constant"),
    "constant-half": Way(
        "as all-half, the rate stays constant", (2e-3,), packs=2, targets=ALL, epochs=0.5, change="constant"
    ),
    "cooldown": Way("as all, the rate falls in the last fifth", (2e-3, 4e-3), packs=2, targets=ALL, change="cooldown"),
    "linear": Way("as all, the rate falls on a line", (2e-3, 1e-3), packs=2, targets=ALL, change="linear"),
    "warm-up": Way("as all, warm-up over a fifth of the steps", (2e-3, 4e-3), packs=2, targets=ALL, warmup=0.2),
    "short-first": Way("as all, short conversations first", (2e-3, 1e-3), packs=2, targets=ALL, change="short-first"),
}
# outside the selection: the ways of the targets, and two ways over a longer run
FIXED = ("published", "rate", "all-half", "constant-half")
CONTEST = [name for name in WAYS if name not in FIXED]
SPEED = 0.125  # passes of a run that measures the speed
TARGETS = ("published", "rate")  # the ways whose loss after a whole pass the others have to reach


@dataclass(frozen=True)
class Race:
    """The config of the base, the data and the published settings; where runs and results are."""

    config: Path = CONFIG

    @property
    def name(self) -> str:
        return self.config.stem

    @property
    def curves(self) -> Path:
        return BENCH / "results" / self.name

    @property
    def speeds(self) -> Path:
        return BENCH / "results" / f"{self.name}-speed.json"

    def latest(self, runs: Path) -> Path:
        """The newest run in the folder `runs`."""
        return runs / str(tomllib.loads(self.config.read_text(encoding="utf-8"))["name"]) / "latest"

    @property
    def runs(self) -> Path:
        return ROOT / ".cache" / self.name / "runs"

    def read_curves(self) -> list[dict[str, Any]]:
        return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(self.curves.glob("*.json"))]

    def read_speeds(self) -> dict[str, list[dict[str, Any]]]:
        return json.loads(self.speeds.read_text(encoding="utf-8")) if self.speeds.is_file() else {}


def main() -> int:
    from race_report import markdown, picture
    from reference import prepare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "tune", "run", "speed", "table"), default="all")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=[], metavar="WAY", help=f"{', '.join(WAYS)}; default: those selected"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), metavar="N", help="default: 0 1 2")
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE", help="default: race.toml beside this")
    parser.add_argument("--rates", type=float, nargs="+", metavar="RATE", help="the learning rates to choose from")
    parser.add_argument("--json", action="store_true", help="print the numbers instead of the table")
    args = parser.parse_args()
    race = Race(args.config.resolve())
    if args.what in ("all", "tune", "run"):
        prepare(race.config)
    if args.what in ("all", "tune"):
        for name in args.ways or [*FIXED, *better_half(race, try_once(race, args.rates))]:
            tune(race, name, args.rates or WAYS[name].rates)
    if args.what in ("all", "run"):
        ways = args.ways or [*FIXED, *better_half(race, better_half(race, CONTEST))]
        for seed in args.seeds:
            for name in ways:
                curve(race, name, seed, chosen_rate(race, name), WAYS[name].epochs)
    if args.what in ("all", "speed"):
        measure_speed(race, args.ways or list(WAYS))
    if args.what in ("all", "table"):
        found = summary(race)
        for suffix, text in (
            ("json", json.dumps(found, indent=1) + "\n"),
            ("md", markdown(found)),
            ("svg", picture(found, read_raced(race))),
        ):
            race.curves.with_name(f"{race.name}.{suffix}").write_text(text, encoding="utf-8")
        print(json.dumps(found) if args.json else markdown(found))
    return 0


def try_once(race: Race, rates: Sequence[float] | None) -> list[str]:
    """A trial of each way of the contest that has none, with the first learning rate; the names of all."""
    for name in CONTEST:
        if not trials(race, name):
            curve(race, name, TUNING_SEED, (rates or WAYS[name].rates)[0], WAYS[name].trial)
    return CONTEST


def better_half(race: Race, names: Sequence[str]) -> list[str]:
    """The better half of these ways, rounded up, by the final loss of each way's best trial. Raises SystemExit."""
    best = {name: best_trial(race, name)["loss"] for name in names}
    return sorted(best, key=lambda name: best[name])[: (len(best) + 1) // 2]


def trials(race: Race, name: str) -> list[dict[str, Any]]:
    """The curves with which a way's learning rate is chosen."""
    return [one for one in race.read_curves() if one["way"] == name and one["seed"] == TUNING_SEED]


def tune(race: Race, name: str, rates: Sequence[float]) -> None:
    """Short runs with these rates, and beyond them while the best is the last of a side.

    Not for a way with one rate only, nor for one that has raced: it keeps the rate that it raced with.
    """
    raced = any(one["way"] == name and one["seed"] != TUNING_SEED for one in race.read_curves())
    if len(WAYS[name].rates) == 1 or raced:
        return
    found = {rate: curve(race, name, TUNING_SEED, rate, WAYS[name].trial)["loss"] for rate in rates}
    while (rate := next_rate(found)) is not None:
        found[rate] = curve(race, name, TUNING_SEED, rate, WAYS[name].trial)["loss"]


def next_rate(losses: Mapping[float, float]) -> float | None:
    """Half or twice the best rate if that is the lowest or the highest of those tried; None if it lies between."""
    best, tried = min(losses, key=lambda rate: losses[rate]), sorted(losses)
    if best == tried[-1]:
        return best * 2
    return best / 2 if best == tried[0] else None


def chosen_rate(race: Race, name: str) -> float:
    """The learning rate of a way: the only one, or that of the best trial. Raises SystemExit before there is one."""
    if len(WAYS[name].rates) == 1:
        return WAYS[name].rates[0]
    return best_trial(race, name)["learning_rate"]


def best_trial(race: Race, name: str) -> dict[str, Any]:
    """The trial with the lowest loss. Raises SystemExit before there is one."""
    tried = trials(race, name)
    if not tried:
        command = f"python tests/bench/race.py tune --config {race.config} --ways {name}"
        raise SystemExit(f"error: no learning rate was chosen for {name} yet: run `{command}` first")
    return min(tried, key=lambda one: one["loss"])


def curve(race: Race, name: str, seed: int, rate: float, epochs: float) -> dict[str, Any]:
    """The run's validation losses by tokens: read from its file, or made now. Raises SystemExit: of other settings."""
    file = race.curves / f"{name}-{rate:g}-{epochs:g}-seed{seed}.json"
    settings = WAYS[name].settings(seed, rate, epochs)
    validate = {"train.eval_steps": settings.pop("train.eval_steps")}  # changes no result
    if seed == TUNING_SEED:
        validate["train.eval_steps"] = 0  # a trial is validated at its end
    if not file.is_file():
        print(f"== {file.stem}", file=sys.stderr, flush=True)
        runs = race.runs / file.stem
        results = train(race, WAYS[name], {**settings, **validate, "runs": runs})
        losses = [(row["tokens"], row["eval_loss"]) for row in metrics(race.latest(runs), "eval_loss")]
        one = {"way": name, "seed": seed, "learning_rate": rate, "epochs": epochs, "settings": settings}
        memory = max(row["memory_mb"] for row in metrics(race.latest(runs), "memory_mb"))
        one |= {"tokens": losses[-1][0], "loss": results["validation_loss"], "losses": losses, "memory_mb": memory}
        race.curves.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(one) + "\n", encoding="utf-8")
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["settings"] != settings:
        raise SystemExit(f"error: {file} is of other settings of {name}: remove it and {race.runs / file.stem}")
    return found


def train(race: Race, way: Way, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a run with these settings in place of the published ones, and the way's change."""
    from reference import execute

    stage = (BENCH / "race_change.py", way.change) if way.change else ("-m", "recipe.train")
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return json.loads(execute(*stage, "--config", race.config, *options, "--json"))["results"]


def metrics(run: Path, key: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that have `key`."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if key in row]


def measure_speed(race: Race, ways: Sequence[str], turns: int = 2) -> None:
    """Tokens per second of short runs of these ways, which take turns, until each has `turns` on this machine."""
    from run import machine

    speeds = race.read_speeds()
    for turn in range(turns):
        for name in ways if turn % 2 else reversed(ways):
            measured = speeds.setdefault(name, [])
            if sum(one["machine"] == machine() for one in measured) > turn:
                continue
            with tempfile.TemporaryDirectory() as runs:
                settings = WAYS[name].settings(turn, 3e-4, SPEED) | {"runs": runs, "train.eval_steps": 0}
                train(race, WAYS[name], settings)
                last = metrics(race.latest(Path(runs)), "loss")[-1]
            measured.append({"tokens_per_second": last["tokens_per_second"], "machine": machine()})
            race.speeds.write_text(json.dumps(speeds, indent=1) + "\n", encoding="utf-8")


def read_raced(race: Race) -> list[dict[str, Any]]:
    """The curves of the race itself: with the chosen rates, and without the trials that chose them."""
    return [
        one
        for one in race.read_curves()
        if one["seed"] != TUNING_SEED
        and one["learning_rate"] == chosen_rate(race, one["way"])
        and one["epochs"] == WAYS[one["way"]].epochs
    ]


def summary(race: Race) -> dict[str, Any]:
    """The targets, a row for each way that raced, and the final losses of all trials by their rate."""
    raced = read_raced(race)
    targets = {}
    for name in TARGETS:
        if ends := [one for one in raced if one["way"] == name]:
            losses = [one["loss"] for one in ends]
            tokens = round(statistics.mean(one["tokens"] for one in ends))
            targets[name] = {"loss": statistics.mean(losses), "losses": losses, "tokens": tokens}
    if "published" not in targets:
        raise SystemExit("error: there is no target yet: run `python tests/bench/race.py run --ways published` first")
    rows = {name: row(race, name, [one for one in raced if one["way"] == name], targets) for name in WAYS}
    tried = {name: trials(race, name) for name in WAYS}
    return {
        "targets": targets,
        "ways": {name: row for name, row in rows.items() if row},
        "trials": {
            name: {"about": WAYS[name].about, "losses": {f"{one['learning_rate']:g}": one["loss"] for one in each}}
            for name, each in tried.items()
            if each
        },
    }


def row(race: Race, name: str, runs: Sequence[Mapping[str, Any]], targets: Mapping[str, Any]) -> dict[str, Any]:
    """One way's numbers, a value for each seed; empty if it did not race. A target's own way needs its whole pass."""
    if not runs:
        return {}
    found: dict[str, Any] = {
        "about": WAYS[name].about,
        "learning_rate": runs[0]["learning_rate"],
        "tokens": [one["tokens"] for one in runs],
        "loss": [one["loss"] for one in runs],
        "memory_mb": [one["memory_mb"] for one in runs],
        "to": {},
    }
    speed = read_speed(race, WAYS[name])
    for target, goal in targets.items():
        needed = [one["tokens"] if name == target else tokens_to(one["losses"], goal["loss"]) for one in runs]
        reached = [one for one in needed if one]
        found["to"][target] = {
            "tokens": needed,
            "mean_tokens": round(statistics.mean(reached)) if reached else None,
            "times_fewer": [round(goal["tokens"] / one, 2) for one in reached],
            "bound": name != target
            and any(tokens == one["losses"][0][0] for tokens, one in zip(needed, runs, strict=True)),
        }
        if speed and reached:
            found["to"][target]["seconds"] = round(statistics.mean(reached) / statistics.mean(speed))
    return found


def read_speed(race: Race, way: Way) -> list[float]:
    """Tokens per second on the machine of the last turn, of the ways that compute the same for a pack as `way`."""
    same = [
        turn for name, turns in race.read_speeds().items() for turn in turns if WAYS[name].computed() == way.computed()
    ]
    return [turn["tokens_per_second"] for turn in same if turn["machine"] == same[-1]["machine"]]


def tokens_to(losses: Sequence[tuple[int, float]], target: float) -> int | None:
    """Tokens at which the validation loss first reaches `target`, by a straight line between two validations.

    None if it does not. The first validation counts as it is: no loss before it is known.
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


if __name__ == "__main__":
    from recipe.core.cli import entry

    sys.exit(entry(main))
