"""Rerun the numbers of README.md that this machine can make, and mark the rest: `make claims`.

    python tests/claims/claims.py [--minutes N] [--only PART ...] [--json]
    python tests/claims/claims.py --record-demo          take the demo's numbers from runs/demo/latest into results.json
    python tests/claims/claims.py --update-counts        take the counts of the long forms into README.md

Exit code 1: a number of the README is not that of the committed results, or a rerun is further from it than its
tolerance. claims.toml says where each number comes from.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "claims"
README, CLAIMS, RESULTS = ROOT / "README.md", HERE / "claims.toml", HERE / "results.json"
BENCH = ROOT / "tests" / "bench" / "results" / "bench.json"
DEMO = ROOT / "runs" / "demo" / "latest" / "eval.json"
NUMBER = r"(\d+(?:,\d{3})*(?:\.\d+)?)"
COMMIT = r"([0-9a-f]{7,40}(?:-modified)?)"
PLACE = r"\{(?:commit)?\}"  # of a number or a commit in a claim
# What long forms, make race, make rehearse and tests/hostile/count.py leave.
COUNTS = {
    "kills": ROOT / "tests" / "faults" / "results" / "kills.json",
    "full": ROOT / "tests" / "faults" / "results" / "full.json",
    "flips": ROOT / "tests" / "faults" / "results" / "flips.json",
    "files": ROOT / "tests" / "hostile" / "results" / "files.json",
    "fuzz": ROOT / "tests" / "hostile" / "results" / "fuzz.json",
    "replays": ROOT / "tests" / "proof" / "results.json",
    "race": ROOT / "tests" / "bench" / "results" / "race.json",
    "cuda": ROOT / "tests" / "cuda" / "results.json",
    "rehearsed": ROOT / "results" / "intel-r-xeon-r-processor-1-thread-demo.json",
}


@dataclass(frozen=True)
class Part:
    """What makes numbers."""

    command: str
    minutes: float
    hardware: str
    run: tuple[str, ...] = ()
    why: str = ""
    writes: str = "bench"  # name of the results that `run` leaves


@dataclass(frozen=True)
class Claim:
    """A sentence of the README with its numbers."""

    says: str
    part: str
    sources: tuple[str, ...]
    tolerance: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="rerun the shortest parts within this time (30)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="rerun these parts, whatever they take")
    parser.add_argument("--record-demo", action="store_true", help="take the demo's numbers into results.json")
    parser.add_argument("--update-counts", action="store_true", help="take the counts of the long forms into README.md")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    args = parser.parse_args()
    if args.record_demo or args.update_counts:
        (record_demo if args.record_demo else update_counts)()
        return 0
    parts, claims = read_claims()
    if unknown := set(args.only or ()) - parts.keys():
        parser.error(f"--only {min(unknown)}: expected one of {', '.join(parts)}")
    text = plain(README.read_text(encoding="utf-8"))
    problems = list(check_readme(text, claims, committed()))
    chosen = choose(parts, args.minutes, args.only)
    rows = []
    for name, part in parts.items():
        mine = [claim for claim in claims if claim.part == name]
        state, found = rerun(name, part, mine, text) if name in chosen else (explain(part), [])
        problems += found
        rows.append({"part": name, "claims": len(mine), "command": part.command, "state": state})
    print(json.dumps({"parts": rows, "problems": problems}) if args.json else page(rows, problems))
    return 1 if problems else 0


def read_claims() -> tuple[dict[str, Part], list[Claim]]:
    table = tomllib.loads(CLAIMS.read_text(encoding="utf-8"))
    parts = {name: Part(**{**values, "run": tuple(values.get("run", ()))}) for name, values in table["parts"].items()}
    claims = [Claim(one["says"], one["part"], tuple(one["from"]), one["tolerance"]) for one in table["claim"]]
    return parts, claims


def plain(text: str) -> str:
    """Markdown without emphasis, rules of tables and line breaks."""
    return re.sub(r"\s+", " ", re.sub(r"\*\*|^[-| ]+$", "", text, flags=re.M))


def committed() -> dict[str, Any]:
    """The committed results, by the names that `from` uses."""
    files = {"bench": BENCH, **COUNTS}
    found = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    return {**found, **json.loads(RESULTS.read_text(encoding="utf-8"))}


def pattern(claim: Claim) -> str:
    """The claim as a regular expression with a group for each number."""
    words = re.escape(claim.says).replace(re.escape("..."), "[^|]*?")
    return words.replace(re.escape("{}"), NUMBER).replace(re.escape("{commit}"), COMMIT)


def shown(text: str, claim: Claim) -> list[str]:
    """The numbers of a claim as the README writes them; empty if the README does not say it, or says it twice."""
    found = re.findall(pattern(claim), text)
    if len(found) != 1:
        return []
    return [found[0]] if isinstance(found[0], str) else list(found[0])


def look_up(results: Mapping[str, Any], source: str) -> float | str:
    """The number at file:key/key, times its factor; or the commit there."""
    place, _, factor = source.partition(" x ")
    file, _, keys = place.partition(":")
    value: Any = results[file]
    for key in keys.split("/"):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value if isinstance(value, str) else float(value) * float(factor or 1)


def check_readme(text: str, claims: Sequence[Claim], results: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each number of the README that is not the committed result, rounded."""
    for claim in claims:
        numbers = shown(text, claim)
        if not numbers:
            yield f"README.md does not say exactly once: {claim.says!r}; adapt it, or tests/claims/claims.toml"
        for number, source in zip(numbers, claim.sources, strict=bool(numbers)):
            value = look_up(results, source)
            if isinstance(value, str):
                if number != value:
                    yield f"README.md says {number} in {claim.says!r}, the committed {source} is {value}"
                continue
            digits = len(number.partition(".")[2])
            if abs(float(number.replace(",", "")) - value) > 0.5000001 * 10**-digits:
                yield f"README.md says {number} in {claim.says!r}, the committed {source} is {value:g}"


def choose(parts: Mapping[str, Part], minutes: float, only: Sequence[str] | None) -> set[str]:
    """The parts to rerun: the shortest that fit into the minutes together."""
    if only:
        return {name for name in only if parts[name].run}
    chosen, spent = set(), 0.0
    for name in sorted(parts, key=lambda name: parts[name].minutes):
        if parts[name].run and spent + parts[name].minutes <= minutes:
            chosen.add(name)
            spent += parts[name].minutes
    return chosen


def explain(part: Part) -> str:
    return f"not rerun: {part.why or f'takes {part.minutes:g} minutes (--minutes)'}"


def rerun(name: str, part: Part, claims: Sequence[Claim], text: str) -> tuple[str, list[str]]:
    """(state, problems) of a part that is made anew, beside the committed results."""
    print(f"== {name}: {part.command}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        is_demo = part.run == ("demo",)
        for words in demo_stages(folder) if is_demo else [[*part.run, "--results", folder]]:
            done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=sys.stderr)
            if done.returncode:
                return "failed", [f"`{' '.join(words)}` ended with exit code {done.returncode}"]
        key, file = ("demo", "runs/demo/latest/eval.json") if is_demo else (part.writes, f"{part.writes}.json")
        results = {key: json.loads((Path(folder) / file).read_text(encoding="utf-8"))}
    if "skipped" in results[key].get(name, {}):
        return f"not rerun: {results[key][name]['skipped']}", []
    problems = list(compare(text, claims, results))
    return ("differs" if problems else "within tolerance"), problems


def demo_stages(folder: str) -> list[list[str]]:
    """The stages of `make demo` up to the evaluation, in a clean folder: a finished demo would skip them."""
    config = ["--config", "recipe/configs/demo.toml"]
    corpus, runs = (["--set", f"{name}={folder}/{name.split('.')[0]}"] for name in ("corpus.path", "runs"))
    return [
        ["-m", "recipe.fetch", "smollm2-135m-instruct"],
        ["-m", "recipe.convert", *config],
        ["-m", "recipe.corpus", *config, *corpus],
        ["-m", "recipe.train", *config, *corpus, *runs],
        ["-m", "recipe.evaluate", "--run", f"{folder}/runs/demo/latest"],
    ]


def compare(text: str, claims: Sequence[Claim], results: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each rerun number that is further from the README than its tolerance."""
    for claim in claims:
        for number, source in zip(shown(text, claim), claim.sources, strict=False):
            value = look_up(results, source)
            if isinstance(value, str):
                continue  # made anew, it has another commit
            wanted = float(number.replace(",", ""))
            if abs(value - wanted) > claim.tolerance * abs(wanted):
                yield f"README.md says {number} in {claim.says!r}, measured here: {value:g}"


def record_demo() -> None:
    """Take the numbers that the claims name from the demo's evaluation into results.json."""
    sys.path[:0] = [str(ROOT / "tests" / "bench")]
    from run import machine

    found = json.loads(DEMO.read_text(encoding="utf-8"))
    kept = ("base", "tuned", "identity", "intervals", "forgetting")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    results["demo"] = {"machine": machine(), **{key: found[key] for key in kept}}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def update_counts() -> None:
    """Write the committed counts into the README's sentences that have a commit."""
    text, results = README.read_text(encoding="utf-8"), committed()
    for claim in read_claims()[1]:
        if "{commit}" in claim.says:
            values = [look_up(results, source) for source in claim.sources]
            written = claim.says
            for value in values:
                written = re.sub(PLACE, value if isinstance(value, str) else f"{value:,.0f}", written, count=1)
            text = re.sub(pattern(claim), lambda found, new=written: new, text)
    README.write_text(text, encoding="utf-8")


def page(rows: Sequence[Mapping[str, Any]], problems: Sequence[str]) -> str:
    lines = [f"{row['part']:<12} {row['claims']:>3} claims  {row['state']}" for row in rows]
    return "\n".join([*lines, "", *(problems or ["every number of README.md is that of the committed results"])])


if __name__ == "__main__":
    sys.exit(main())
