"""Replay a run: rebuild its corpus and its adapter in a clean folder, and compare them with the run bit for bit.

On the same kind of CPU, with as many threads and the same code and packages, every bit is equal. Elsewhere sums are
added in another order; then the validation loss has to be within `BAND`.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe.core import config as configs
from recipe.core.config import Config
from recipe.core.errors import RecipeError, UsageError
from recipe.core.files import atomic_file
from recipe.core.lineage import ORDER, compare
from recipe.core.manifest import check_intact, differences, hash_inputs, read_manifest
from recipe.core.run import Run
from recipe.core.text import say, snippet

ROOT = Path(__file__).parents[2]
BAND = 0.01  # relative difference of the validation loss; see tests/reproduce/README.md for what was measured
RESULT = "replay.json"  # in the replay's folder, when it is complete
CONFIG = "replay.toml"  # not config.toml: the folder is not a run


def replay(original: Run, config: Config, folder: Path) -> dict[str, Any]:
    """Rebuild `original` in `folder` by starting its stages, compare, and leave replay.json there.

    `config` is the run's own, perhaps with other paths. An interrupted replay continues. Raises UsageError if `folder`
    holds anything else or `config` changes a setting, RecipeError if the run is not intact or a stage fails.
    """
    moved = move(config, folder)
    check_folder(folder, moved)
    check_settings(original, config)
    manifest = check_intact(original.folder)
    file = folder / CONFIG
    with atomic_file(file) as out:
        out.write(configs.dump(moved))
    threads = manifest["results"]["threads"]
    if moved.corpus.path != config.corpus.path:
        start("corpus", threads, "--config", str(file))
    start("train", threads, "--config", str(file))
    again = Run(Run.latest(moved).resolve())
    if original.eval_json.is_file():
        original.check_recorded(original.eval_json.name)
        provenance = json.loads(original.eval_json.read_text(encoding="utf-8"))["provenance"]
        start("evaluate", provenance.get("threads", threads), "--run", str(again.folder))
    result = judge(original, again, Path(config.corpus.path), Path(moved.corpus.path))
    with atomic_file(folder / RESULT) as out:
        json.dump(result, out, indent=1, ensure_ascii=False, sort_keys=True)
        out.write("\n")
    return result


def move(config: Config, folder: Path) -> Config:
    """The config with runs and corpus in `folder`. A corpus whose sources the config does not name stays as it is."""
    corpus = config.corpus
    if corpus.source or corpus.identity_name:
        corpus = dataclasses.replace(corpus, path=str(folder / "corpus"))
    else:
        say(f"the config names no corpus.source: {snippet(corpus.path)} is verified and used as it is")
    return dataclasses.replace(config, runs=str(folder / "runs"), corpus=corpus)


def check_folder(folder: Path, config: Config) -> None:
    """Raises UsageError unless `folder` is absent, empty, or that of an interrupted replay of this config."""
    if (folder / RESULT).is_file():
        raise UsageError(f"{folder} holds a finished replay: remove it, or choose another folder with --into")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        file = folder / CONFIG
        if not file.is_file() or file.read_text(encoding="utf-8") != configs.dump(config):
            raise UsageError(f"{folder} is not empty, expected a clean folder: choose another one with --into")
        say(f"continue the interrupted replay in {folder}")


def check_settings(original: Run, config: Config) -> None:
    """Raises UsageError if `config` is not the run's own in everything that can change a result."""
    original.check_recorded("config.toml")
    for line in differences(configs.hashed(original.config()), configs.hashed(config)):
        raise UsageError(f"--set changes {line}: a replay may only change paths and other fields that change no result")


def start(stage: str, threads: int, *options: str) -> None:
    """Run a stage in a process of its own, with as many CPU threads as the run had. Its output goes to stderr."""
    say(f"replay: {stage}")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", f"recipe.{stage}", *options]
    with subprocess.Popen(command, env=environment, stdout=sys.stderr) as process:  # noqa: S603 - our own stages
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # it got the signal too, and saves first
            raise
    if code:
        raise RecipeError(f"the stage {stage} of the replay ended with exit code {code}: see its message above")


def judge(original: Run, again: Run, corpus: Path, rebuilt: Path) -> dict[str, Any]:
    """What differs, what may explain it, and the verdict: equal, inside (the band) or outside."""
    one, two = read_manifest(original.folder), read_manifest(again.folder)
    different = {
        "corpus": list(compare_corpus(one["inputs"]["corpus"], corpus, rebuilt)),
        "adapter": list(differences(one["outputs"], two["outputs"])),
        "numbers": [
            line for line in differences(one["results"], two["results"]) if not f"results.{line}".startswith(ORDER)
        ],
        "losses of steps": compare_losses(original, again),
        "evaluation": compare_evaluations(original, again),
    }
    reasons = compare(one, two)
    if named := one["results"].get("nondeterministic"):
        reasons["nondeterministic"] = list(named)
    losses = [manifest["results"]["validation_loss"] for manifest in (one, two)]
    apart = abs(losses[1] / losses[0] - 1)
    if not any(different.values()):
        verdict = "equal"
    else:
        excused = bool(reasons) and not different["corpus"] and apart <= BAND
        verdict = "inside" if excused else "outside"
    return {
        "run": f"{original.folder.parent.name}/{original.folder.name}",
        "verdict": verdict,
        "differences": {key: [snippet(line, 200) for line in lines[:10]] for key, lines in different.items()},
        "reasons": reasons,
        "validation_loss": losses,
        "band": BAND,
    }


def compare_corpus(expected: str, corpus: Path, rebuilt: Path) -> list[str]:
    """In which files the rebuilt corpus differs from the one that the run was trained on."""
    found = hash_inputs({"corpus": rebuilt})["corpus"]
    if found == expected:
        return []
    outputs = read_manifest(rebuilt)["outputs"]
    try:
        lines = list(differences(read_manifest(corpus)["outputs"], outputs))
    except RecipeError:
        lines = []  # the original is gone: only its hash is known
    return lines or [f"hash: {expected} != {found}"]


def compare_losses(one: Run, two: Run) -> list[str]:
    """The first optimizer step whose loss differs."""
    for left, right in zip(read_losses(one.metrics), read_losses(two.metrics), strict=False):
        if left != right:
            return [f"step {left['step']}: loss {left['loss']} != {right['loss']}"]
    return []


def read_losses(metrics: Path) -> list[Mapping[str, Any]]:
    rows = (json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines())
    return [{"step": row["step"], "loss": row["loss"]} for row in rows if "loss" in row]


def compare_evaluations(one: Run, two: Run) -> list[str]:
    """Every number and answer in which the evaluations differ; nothing if the run was not evaluated."""
    if not one.eval_json.is_file():
        return []
    left, right = (json.loads(run.eval_json.read_text(encoding="utf-8")) for run in (one, two))
    return list(differences(left | {"provenance": None}, right | {"provenance": None}))


def describe(result: Mapping[str, Any]) -> str:
    """The result for a person."""
    left, right = result["validation_loss"]
    words = {
        "equal": "equal: corpus, adapter, every loss and the evaluation are the same bits",
        "inside": f"inside: not the same bits, but the validation loss is within {BAND:.0%} of the run's",
        "outside": "outside: the replay did not give this run",
    }
    lines = [f"{words[result['verdict']]} (validation loss {left:.6f}, replayed {right:.6f})"]
    for part, found in result["differences"].items():
        lines += [f"  {part} differs: {line}" for line in found[:3]]
    lines += [f"  may explain it: {part}: {'; '.join(found[:3])}" for part, found in result["reasons"].items()]
    if result["verdict"] == "outside" and not result["reasons"]:
        lines.append("  code, packages, hardware and threads are those of the run: it should have been the same bits")
    return "\n".join(lines)
