"""Evaluate a run: validation loss, perplexity, bits per byte and answers, base and tuned model side by side."""

import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.conversations import identity
from recipe.conversations.messages import Message
from recipe.core import config as configs
from recipe.core.cli import add_run, build_parser, entry, load_run
from recipe.core.config import Config
from recipe.core.errors import RecipeError
from recipe.core.files import atomic_file
from recipe.core.manifest import check_inputs, check_intact, hash_inputs
from recipe.core.run import Run
from recipe.core.text import printable, progress, say, show, table
from recipe.core.versions import code_sha256, environment
from recipe.evaluation import choices, instructions, texts
from recipe.evaluation.texts import Sample
from recipe.reports.exports import explain as explain_exports
from recipe.reports.exports import rows as exports_rows

if TYPE_CHECKING:
    from recipe.evaluation.losses import Scored
    from recipe.model.open import TunedModel
    from recipe.training.dataset import PackedDataset

STAGE = "evaluate"
BATCH = 16  # prompts per batch: on a CPU most of the time of a step is spent on reading the weights


def run(config: Config, opened: Run) -> dict[str, Any]:
    """Evaluate a finished run; returns the content of its eval.json.

    Keys: base and tuned (loss in nats per trained token, perplexity, bits_per_byte, tokens), intervals (see
    `losses.summarize`), forgetting (see `scoring.forgetting`), identity (base_hits, tuned_hits, total: answers to
    unseen questions that contain the taught name), answers, provenance; on request texts, choices and instructions.
    Raises RecipeError if the run, its base or its corpus was altered or is another one.
    """
    from recipe.evaluation import losses, scoring
    from recipe.model.open import open_run

    provenance = build_provenance(config, opened)
    if earlier := find_earlier(opened, provenance):
        say(f"{opened.eval_json} exists already for the same inputs")
        if opened.eval_json.name not in opened.records():  # a process was killed just before it recorded them
            opened.record(opened.eval_json.name, opened.samples.name)
        return earlier
    check_writable(opened.folder)
    tuned = open_run(opened, config)
    tests = read_tests(config, tuned)
    identity_questions = identity.unseen_questions() if config.corpus.identity_name else ()
    instructed = instructions.read() if config.evaluate.instructions else []
    questions = [*config.evaluate.prompts, *identity_questions, *(item.prompt for item in instructed)]
    scored: dict[str, list[scoring.Losses]] = {}
    answers: dict[str, list[str]] = {}
    for name, adapter in (("base", tuned.model.disable_adapter), ("tuned", nullcontext)):
        with adapter():
            scored[name] = [scoring.score(tuned.model, test.data, f"{name}: {test.name}") for test in tests]
            answers[name] = ask(tuned, config.evaluate.max_new_tokens, questions)
    result: dict[str, Any] = {"provenance": provenance}
    validation = read_validation(Path(config.corpus.path) / "val.jsonl", tests[0], scored)
    for name in ("base", "tuned"):
        nats = [nll for item in validation for nll in vars(item)[name]]
        result[name] = scores(sum(nats), len(nats), sum(item.bytes for item in validation))
    result["intervals"] = losses.summarize(validation)
    result |= summarize_tests(tests[1:], [each[1:] for each in scored.values()])
    if instructed:
        result["instructions"] = {
            name: instructions.accuracy(instructed, answers[name][-len(instructed) :]) for name in ("base", "tuned")
        }
    result["answers"] = [
        {"question": question, "base": base_answer, "tuned": tuned_answer}
        for question, base_answer, tuned_answer in zip(questions, answers["base"], answers["tuned"], strict=True)
    ]
    if identity_questions:
        first = len(config.evaluate.prompts)
        asked = result["answers"][first : first + len(identity_questions)]
        result["identity"] = identity_hits(config.corpus.identity_name, asked)
    write(opened, result)
    opened.record(opened.eval_json.name, opened.samples.name)
    return result


def build_provenance(config: Config, opened: Run) -> dict[str, Any]:
    """What the numbers follow from: run, base and corpus by hash, the settings, code and environment.

    The corpus is verified here, the run and its base by `open_run`, before they are read.
    """
    paths = {"base": Path(config.base.path), "corpus": Path(config.corpus.path)}
    asked = (*config.evaluate.texts, *config.evaluate.choices)
    files = {f"file {number}: {Path(path).name}": Path(path) for number, path in enumerate(asked)}  # no machine's path
    check_intact(opened.folder)
    check_inputs(opened.folder, paths)
    check_intact(paths["corpus"])
    return {
        "stage": STAGE,
        "config": configs.hashed(config.evaluate),
        "inputs": hash_inputs({"run": opened.folder, **paths, **files}),
        "code": code_sha256(),
        "environment": environment(),
    }


def judge_exports(config: Config, opened: Run) -> dict[str, Any]:
    """The validation loss of every format of the tuned model in the run's folder; the content of exports.json.

    At most `exports.MOST_TOKENS` tokens of the validation set are used. Raises RecipeError: an altered or stale file.
    """
    from recipe.evaluation import exports
    from recipe.model.exports import find_exports
    from recipe.model.load import load_tokenizer
    from recipe.training.dataset import PackedDataset, encode_file

    provenance = build_provenance(config, opened)
    check_writable(opened.folder)
    file = Path(config.corpus.path) / "val.jsonl"
    rows = encode_file(file, load_tokenizer(Path(config.base.path)), config.corpus.template)
    ids = [str(json.loads(line)["id"]) for line in file.read_text(encoding="utf-8").splitlines()]
    chosen = exports.choose_samples(ids, [len(row) for row in rows["input_ids"]])
    data = PackedDataset(rows.select(chosen), config.train.micro_batch_tokens)
    conversations = [ids[number].partition("#")[0] for number in chosen]
    kept = {key: provenance[key] for key in ("inputs", "code")} | {"samples": len(chosen), "of": len(ids)}
    return exports.judge(opened, find_exports(opened, config), data, conversations, kept)


def check_writable(folder: Path) -> None:
    """Raises OSError if the results could not be written: better now than after the work."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def find_earlier(opened: Run, provenance: dict[str, Any]) -> dict[str, Any] | None:
    """An earlier eval.json for the same inputs and settings, if samples.md exists too."""
    if not opened.eval_json.is_file() or not opened.samples.is_file():
        return None
    try:
        opened.check_recorded(opened.eval_json.name)
        opened.check_recorded(opened.samples.name)
        result = json.loads(opened.eval_json.read_text(encoding="utf-8"))
        same = all(result["provenance"][key] == provenance[key] for key in ("config", "inputs"))
    except (ValueError, KeyError, TypeError, RecipeError):
        return None  # not an eval.json of this version: evaluate again
    return result if same else None


@dataclass(frozen=True)
class Test:
    """Samples to score, packed: the validation set, the forgetting probe, texts and multiple choice."""

    name: str
    kind: str
    data: "PackedDataset"
    samples: Sequence[Sample] = ()
    questions: Sequence[choices.Question] = ()
    sha256: str = ""


def read_tests(config: Config, tuned: "TunedModel") -> list[Test]:
    """The validation set first, then everything else that is scored by its likelihood."""
    from recipe.training.dataset import PackedDataset, encode_file

    budget = config.train.micro_batch_tokens
    rows = encode_file(Path(config.corpus.path) / "val.jsonl", tuned.tokenizer, tuned.template)
    out = [Test("validation", "validation", PackedDataset(rows, budget))]
    passages, digest = texts.probe()
    out.append(pack_samples("forgetting probe", "forgetting", texts.encode_texts(tuned.tokenizer, passages), budget))
    out[-1] = dataclasses.replace(out[-1], sha256=digest)
    for path in map(Path, config.evaluate.texts):
        out.append(pack_samples(path.name, "texts", texts.encode_texts(tuned.tokenizer, texts.read_text(path)), budget))
    for path in map(Path, config.evaluate.choices):
        questions = choices.read(path)
        samples = choices.samples(tuned.tokenizer, tuned.template, questions)
        out.append(dataclasses.replace(pack_samples(path.name, "choices", samples, budget), questions=questions))
    return out


def pack_samples(name: str, kind: str, samples: Sequence[Sample], budget: int) -> Test:
    from datasets import Dataset

    from recipe.training.dataset import PackedDataset

    rows = Dataset.from_dict({key: [getattr(item, key) for item in samples] for key in ("input_ids", "labels")})
    return Test(name, kind, PackedDataset(rows, budget), samples)


def read_validation(file: Path, test: Test, scored: dict[str, list[Any]]) -> "list[Scored]":
    """Each sample of val.jsonl with its losses and with what they are grouped by."""
    from recipe.conversations.cleaning.filters import language
    from recipe.evaluation.losses import Scored, turn_numbers

    out = []
    lines = file.read_text(encoding="utf-8").splitlines()
    for line, row, base, tuned in zip(lines, test.data.rows, scored["base"][0], scored["tuned"][0], strict=True):
        record = json.loads(line)
        messages = [Message(**message) for message in record["messages"]]
        size = sum(len(message.content.encode()) for message in messages if message.role == "assistant")
        name, source = str(record["id"]).partition("#")[0], str(record.get("source", ""))
        out.append(Scored(name, source, language(messages), size, turn_numbers(row["labels"]), base, tuned))
    return out


def summarize_tests(tests: Sequence[Test], scored: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """The results of the forgetting probe, of texts and of multiple choice, each with intervals."""
    from recipe.evaluation import scoring

    out: dict[str, Any] = {}
    for test, base, tuned in zip(tests, *scored, strict=True):
        if test.kind == "forgetting":
            out["forgetting"] = scoring.forgetting(test.samples, base, tuned, test.sha256)
        elif test.kind == "texts":
            out.setdefault("texts", {})[test.name] = scoring.bits_per_byte(test.samples, base, tuned)
        else:
            found = scoring.choice_accuracy(test.questions, test.samples, base, tuned)
            out.setdefault("choices", {})[test.name] = found
    return out


def scores(nll: float, count: int, size: int) -> dict[str, float]:
    """nll: total nats over `count` trained tokens (the EOS of each answer included) that encode `size` bytes."""
    return {
        "loss": nll / count,
        "perplexity": math.exp(nll / count),
        "bits_per_byte": nll / math.log(2) / size,
        "tokens": count,
    }


def ask(tuned: "TunedModel", max_new_tokens: int, questions: Sequence[str]) -> list[str]:
    """The greedy answer to each question, in batches."""
    from recipe.conversations.tokens import prompt_ids
    from recipe.model.generate import generate

    prompts = [prompt_ids(tuned.tokenizer, tuned.template, [Message("user", question)]) for question in questions]
    out: list[str] = []
    for start in progress(range(0, len(prompts), BATCH), desc="answer the prompts", unit=" batches"):
        out += generate(tuned.model, tuned.tokenizer, prompts[start : start + BATCH], max_new_tokens)
    return out


def identity_hits(name: str, answers: Sequence[dict[str, str]]) -> dict[str, int]:
    """How many answers to the identity questions, none of them trained on, contain the taught name."""
    hits = {
        f"{model}_hits": sum(name.lower() in answer[model].lower() for answer in answers) for model in ("base", "tuned")
    }
    return {**hits, "total": len(answers)}


def write(opened: Run, result: dict[str, Any]) -> None:
    """Write samples.md for people, then eval.json, whose existence means that both are complete."""
    with atomic_file(opened.samples) as file:
        file.write(samples(result))
    with atomic_file(opened.eval_json) as file:
        json.dump(result, file, indent=1, ensure_ascii=False, sort_keys=True)
        file.write("\n")


def samples(result: dict[str, Any]) -> str:
    """Numbers and answers as Markdown; every line of an answer is indented, so it is never rendered as Markdown."""
    lines = ["# Base and tuned model", "", "| | base | tuned |", "| --- | --- | --- |"]
    for key, title in (("loss", "validation loss"), ("perplexity", "perplexity"), ("bits_per_byte", "bits per byte")):
        lines.append(f"| {title} | {result['base'][key]:.4f} | {result['tuned'][key]:.4f} |")
    if found := result.get("identity"):
        base, tuned = (f"{found[f'{model}_hits']} of {found['total']}" for model in ("base", "tuned"))
        lines.append(f"| taught name in the answer | {base} | {tuned} |")
    for answer in result["answers"]:
        lines += ["", f"## {answer['question']}"]
        for model in ("base", "tuned"):
            quoted = "\n".join(f"    {line}" for line in printable(answer[model], keep="\n\t").splitlines())
            lines += ["", f"**{model}**", "", quoted or "    (an empty answer)"]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(STAGE, __doc__ or "", "python -m recipe.evaluate --run runs/demo/latest")
    add_run(parser)
    parser.add_argument(
        "--exports", action="store_true", help="compare the validation loss of all formats that recipe.merge wrote"
    )
    args = parser.parse_args(argv)
    config, opened = load_run(args)
    if args.dry_run:
        provenance = build_provenance(config, opened)
        show(provenance, f"would ask {len(config.evaluate.prompts)} prompts -> {opened.eval_json}", args.json)
        return 0
    if args.exports:
        result = judge_exports(config, opened)
        show(result, f"{table(exports_rows(result))}\n{explain_exports(result)}", args.json)
        return 0
    result = run(config, opened)
    rows = [["", "base", "tuned"]]
    rows += [[key, f"{result['base'][key]:.4f}", f"{result['tuned'][key]:.4f}"] for key in ("loss", "perplexity")]
    if found := result.get("identity"):
        rows.append(["identity", *(f"{found[f'{model}_hits']} of {found['total']}" for model in ("base", "tuned"))])
    answers = opened.short / opened.samples.name
    text = f"{table(rows)}\nanswers: {answers}\nnext: python -m recipe.merge --run {opened.short} --to hf"
    show(result, text, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))
