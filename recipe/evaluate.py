"""Evaluate a run: losses with intervals, what was forgotten, answers; base and tuned model side by side.

An evaluation that was interrupted resumes where it stopped. --vote also answers 80 open questions and writes a page on
which people compare the answers without knowing whose they are; --votes counts what they saved.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from recipe.core import config as configs
from recipe.core.cli import add_run, build_parser, entry, load_run
from recipe.core.config import Config
from recipe.core.errors import RecipeError
from recipe.core.files import atomic_file, digest, lock_file, remove
from recipe.core.manifest import check_inputs, check_intact, hash_inputs
from recipe.core.run import Run
from recipe.core.text import say, show, table
from recipe.core.versions import code_sha256, environment
from recipe.evaluation import judge
from recipe.evaluation.parts import Parts
from recipe.evaluation.vote_page import build_page
from recipe.reports import evaluation as view
from recipe.reports.exports import explain as explain_exports
from recipe.reports.exports import rows as exports_rows
from recipe.reports.samples import samples

STAGE = "evaluate"


def run(config: Config, opened: Run) -> dict[str, Any]:
    """Evaluate a finished run; returns the content of its eval.json.

    Keys: base and tuned (loss in nats per trained token, perplexity, bits_per_byte, tokens), intervals (see
    `losses.summarize`), forgetting (see `scoring.forgetting`), answers, provenance; where the config asks for it
    identity, texts, choices and instructions (see `results.build_results`). Raises RecipeError if the run, its base or
    its corpus was altered or is another one.
    """
    import torch

    from recipe.evaluation.losses import lines, read_scored
    from recipe.evaluation.results import build_results
    from recipe.evaluation.suite import measure, read_suite
    from recipe.model.load import load_tokenizer
    from recipe.model.open import open_run

    provenance = build_provenance(config, opened)
    if earlier := find_earlier(config, opened, provenance):
        say(f"{opened.eval_json} exists already for the same inputs")
        names = [file.name for file in list_outputs(config, opened)]
        if not set(names) <= opened.records().keys():  # a process was killed just before it recorded them
            opened.record(*names)
        return earlier
    check_writable(opened.folder)
    with lock_run(opened):
        suite = read_suite(config, load_tokenizer(Path(config.base.path)))
        check_asked(config, provenance)
        tuned = open_run(opened, config)
        if tuned.model.device.type == "cpu":  # their number decides the order in which sums are added
            provenance["threads"] = torch.get_num_threads()
        with Parts(opened.eval_parts, read_origin(provenance)) as parts:
            with tuned.model.disable_adapter():
                base = measure(suite, tuned, "base", config, parts)
            measured = {"base": base, "tuned": measure(suite, tuned, "tuned", config, parts)}
        nats = [each.losses[0] for each in measured.values()]
        labels = (row["labels"] for row in suite.tests[0].data.rows)
        validation = read_scored(Path(config.corpus.path) / "val.jsonl", labels, *nats)
        result = {"provenance": provenance, **build_results(config, suite, measured, validation)}
        write(config, opened, result, lines(validation))
    return result


def build_provenance(config: Config, opened: Run) -> dict[str, Any]:
    """What the numbers follow from: run, base and corpus by hash, the settings, code and environment.

    The corpus is verified here, the run and its base by `open_run`, before they are read.
    """
    paths = {"base": Path(config.base.path), "corpus": Path(config.corpus.path)}
    check_intact(opened.folder)
    opened.records()  # the results are recorded there: damage is found before the work, not after
    check_inputs(opened.folder, paths)
    check_intact(paths["corpus"])
    return {
        "stage": STAGE,
        "config": configs.hashed(config.evaluate),
        "inputs": hash_inputs({"run": opened.folder, **paths, **asked_files(config)}),
        "code": code_sha256(),
        "environment": environment(),
    }


def asked_files(config: Config) -> dict[str, Path]:
    """The user's own texts and choices, by a name that no machine's path is in."""
    asked = (*config.evaluate.texts, *config.evaluate.choices)
    return {f"file {number}: {Path(path).name}": Path(path) for number, path in enumerate(asked)}


def check_asked(config: Config, provenance: dict[str, Any]) -> None:
    """Raises RecipeError if one of these files is no longer what was hashed before it was read."""
    files = asked_files(config)
    for name, found in hash_inputs(files).items():
        if found != provenance["inputs"][name]:
            raise RecipeError(f"{files[name]} was written to while it was read: run the same command again")


def judge_exports(config: Config, opened: Run) -> dict[str, Any]:
    """The validation loss of every format of the tuned model in the run's folder; the content of exports.json.

    At most `exports.MOST_TOKENS` tokens of the validation set are used. Raises RecipeError: an altered or stale file.
    """
    from recipe.evaluation import exports
    from recipe.model.exports import find_exports
    from recipe.model.load import load_tokenizer
    from recipe.training.dataset import PackedDataset, encode_file

    provenance = build_provenance(config, opened)
    check_intact(Path(config.base.path))  # its weights are read themselves, not their quantized copy
    check_writable(opened.folder)
    file = Path(config.corpus.path) / "val.jsonl"
    rows = encode_file(file, load_tokenizer(Path(config.base.path)), config.corpus.template)
    ids = [str(json.loads(line)["id"]) for line in file.read_text(encoding="utf-8").splitlines()]
    chosen = exports.choose_samples(ids, [len(row) for row in rows["input_ids"]])
    data = PackedDataset(rows.select(chosen), config.train.micro_batch_tokens)
    conversations = [ids[number].partition("#")[0] for number in chosen]
    kept = {key: provenance[key] for key in ("inputs", "code")} | {"samples": len(chosen), "of": len(ids)}
    with lock_run(opened):
        return exports.judge(opened, find_exports(opened, config), data, conversations, kept)


def lock_run(opened: Run) -> contextlib.AbstractContextManager[None]:
    """Only one process at a time trains or evaluates a run."""
    return lock_file(opened.lock, f"another process works on {opened.folder}: wait for it to end, or stop it")


def read_origin(provenance: dict[str, Any]) -> str:
    """A digest of what a part of an evaluation follows from, besides what was asked: the models and the code."""
    inputs = {name: provenance["inputs"][name] for name in ("run", "base")}
    return digest([inputs, provenance["code"], provenance["environment"], provenance.get("threads")])


def list_outputs(config: Config, opened: Run) -> list[Path]:
    """The files that an evaluation leaves; eval.json is written last, so its existence means that all are complete."""
    judged = [opened.comparisons, opened.vote_page] if config.evaluate.judge else []
    return [opened.samples, opened.eval_losses, *judged, opened.eval_json]


def find_earlier(config: Config, opened: Run, provenance: dict[str, Any]) -> dict[str, Any] | None:
    """An earlier eval.json for the same inputs and settings, if all its files are there as they were written."""
    try:
        for file in list_outputs(config, opened):
            if not file.is_file():
                return None
            opened.check_recorded(file.name)
        result = json.loads(opened.eval_json.read_text(encoding="utf-8"))
        same = all(result["provenance"][key] == provenance[key] for key in ("config", "inputs"))
    except (ValueError, KeyError, TypeError, RecipeError):
        return None  # not an eval.json of this version: evaluate again
    return result if same else None


def check_writable(folder: Path) -> None:
    """Raises OSError if the results could not be written: better now than after the work."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def write(config: Config, opened: Run, result: dict[str, Any], losses: Iterable[str]) -> None:
    """Write every file of the evaluation, and record their hashes."""
    outputs = list_outputs(config, opened)
    remove(opened.eval_json)
    with atomic_file(opened.eval_losses) as file:
        file.writelines(losses)
    with atomic_file(opened.samples) as file:
        file.write(samples(result))
    if config.evaluate.judge:
        write_comparisons(opened, list(read_pairs(result)))
    with atomic_file(opened.eval_json) as file:
        json.dump(result, file, indent=1, ensure_ascii=False, sort_keys=True)
        file.write("\n")
    opened.record(*(file.name for file in outputs))


def read_pairs(result: dict[str, Any]) -> Iterator[judge.Pair]:
    """The pairs of answers to the open questions, from what eval.json holds."""
    answers = [item for item in result["answers"] if item["group"] == "judged"]
    base, tuned = ([item[name] for item in answers] for name in ("base", "tuned"))
    questions = judge.read_questions() if answers else []
    return judge.pairs(questions, base, tuned, result["provenance"]["inputs"]["run"])


def write_comparisons(opened: Run, pairs: list[judge.Pair]) -> None:
    """comparisons.jsonl has every pair in both orders, vote.html the first of each two."""
    with atomic_file(opened.comparisons) as file:
        file.writelines(json.dumps(pair.blind(), ensure_ascii=False) + "\n" for pair in pairs)
    with atomic_file(opened.vote_page) as file:
        file.write(build_page(f"{opened.folder.parent.name}/{opened.folder.name}", pairs[::2]))


def count_votes(opened: Run, files: list[Path]) -> dict[str, Any]:
    """The result of the votes in `files`, also written as votes.json.

    Raises RecipeError if the run has no pairs to vote on, or a file does not hold votes on them.
    """
    opened.check_recorded(opened.eval_json.name)
    result = json.loads(opened.eval_json.read_text(encoding="utf-8")) if opened.eval_json.is_file() else {}
    known = {pair.id: pair for pair in read_pairs(result)} if result else {}
    if not known:
        raise RecipeError(
            f"{opened.short} has no answers to vote on: run `python -m recipe.evaluate --run {opened.short} --vote` "
            "first"
        )
    votes = [vote for file in files for vote in judge.read_votes(file, known)]
    found = {"files": len(files), "run": result["provenance"]["inputs"]["run"], **judge.summarize(votes)}
    with atomic_file(opened.votes) as file:
        json.dump(found, file, indent=1, sort_keys=True)
        file.write("\n")
    opened.record(opened.votes.name)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(STAGE, __doc__ or "", "python -m recipe.evaluate --run runs/demo/latest")
    add_run(parser)
    parser.add_argument(
        "--exports", action="store_true", help="compare the validation loss of all formats that recipe.merge wrote"
    )
    parser.add_argument(
        "--vote", action="store_true", help="also answer 80 open questions, and write the page to vote on them by hand"
    )
    parser.add_argument(
        "--votes", type=Path, nargs="+", metavar="FILE", help="count the votes that the page, or a judge model, saved"
    )
    args = parser.parse_args(argv)
    args.set += ["evaluate.judge=true"] if args.vote else []
    config, opened = load_run(args)
    if args.votes:
        found = count_votes(opened, args.votes)
        show(found, table(view.vote_rows(found)), args.json)
        return 0
    if args.dry_run:
        provenance = build_provenance(config, opened)
        show(provenance, f"would ask {len(config.evaluate.prompts)} prompts -> {opened.eval_json}", args.json)
        return 0
    if args.exports:
        result = judge_exports(config, opened)
        show(result, f"{table(exports_rows(result))}\n{explain_exports(result)}", args.json)
        return 0
    result = run(config, opened)
    show(result, text(result, opened, config.evaluate.judge), args.json)
    for warning in view.warnings(result):
        say(f"warning: {warning}")
    return 0


def text(result: dict[str, Any], opened: Run, judged: bool) -> str:
    """The numbers for a person, where the answers are, and what comes next."""
    lines = [table(view.summary(result)), f"answers: {opened.short / opened.samples.name}"]
    if judged:
        lines.append(
            f"vote: open {opened.short / opened.vote_page.name} in a browser, then pass what it saves to --votes"
        )
    return "\n".join([*lines, f"next: python -m recipe.merge --run {opened.short} --to hf"])


if __name__ == "__main__":
    sys.exit(entry(main))
