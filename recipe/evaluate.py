"""Judge a run: held-out loss, perplexity, bits per byte and answers, base and tuned model side by side."""

import json
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from recipe.conversations import identity
from recipe.conversations.messages import Message
from recipe.core import config as configs
from recipe.core.cli import add_run, build_parser, entry, load_run
from recipe.core.config import Config
from recipe.core.files import atomic_file
from recipe.core.manifest import check_inputs, check_intact, hash_inputs
from recipe.core.text import printable, progress, say, show, table
from recipe.core.versions import code_sha256, environment

STAGE = "evaluate"
EVAL, SAMPLES = "eval.json", "samples.md"
BATCH = 16  # prompts answered at once: on a CPU most of a step is reading the weights


def run(config: Config, folder: Path) -> dict[str, Any]:
    """Evaluate the finished run in `folder`; the content of its eval.json.

    Keys: base and tuned (loss in nats per trained token, perplexity, bits_per_byte, tokens), identity (base_hits,
    tuned_hits, total: answers to held-out questions that contain the taught name), answers, provenance.
    """
    from recipe.model.adapter import load_adapter
    from recipe.model.likelihood import held_out_nll
    from recipe.model.load import default_device, load_base, load_tokenizer
    from recipe.training import dataset

    proof = proof_of(config, folder)
    if earlier := done(folder, proof):
        say(f"{folder / EVAL} is there already and its inputs are the same")
        return earlier
    corpus, base = Path(config.corpus.path), Path(config.base.path)
    tokenizer = load_tokenizer(base)
    rows = dataset.encode_file(corpus / "val.jsonl", tokenizer, config.corpus.template)
    size = answer_bytes(corpus / "val.jsonl")
    tuned = load_adapter(load_base(base, config.base.precision, default_device()), folder / "adapter")

    held_out_questions = identity.held_out() if config.corpus.identity_name else ()
    questions = [*config.evaluate.prompts, *held_out_questions]
    result: dict[str, Any] = {"provenance": proof}
    answers: dict[str, list[str]] = {}
    for who, adapter in (("base", tuned.disable_adapter), ("tuned", nullcontext)):
        with adapter():
            say(f"{who} model: held-out loss, then {len(questions)} prompts")
            nll, count = held_out_nll(tuned, dataset.batches(rows, config.train.micro_batch_tokens))
            result[who] = scores(nll, count, size)
            answers[who] = ask(tuned, tokenizer, config, questions)
    result["answers"] = [
        {"question": question, "base": base_answer, "tuned": tuned_answer}
        for question, base_answer, tuned_answer in zip(questions, answers["base"], answers["tuned"], strict=True)
    ]
    if held_out_questions:
        result["identity"] = identity_hits(config.corpus.identity_name, result["answers"][-len(held_out_questions) :])
    write(folder, result)
    return result


def proof_of(config: Config, folder: Path) -> dict[str, Any]:
    """What the numbers follow from: the run's outputs, base and corpus by hash, what was asked, and with which code."""
    base, corpus = Path(config.base.path), Path(config.corpus.path)
    check_intact(folder)
    check_inputs(folder, {"base": base, "corpus": corpus})
    inputs = {"run": folder, "base": base, "corpus": corpus}
    return {
        "stage": STAGE,
        "config": configs.hashed(config.evaluate),
        "inputs": hash_inputs(inputs),
        "code": code_sha256(),
        "environment": environment(),
    }


def done(folder: Path, proof: dict[str, Any]) -> dict[str, Any] | None:
    """An earlier eval.json of the same inputs and questions, if samples.md is there too."""
    file = folder / EVAL
    if not file.is_file() or not (folder / SAMPLES).is_file():
        return None
    result = json.loads(file.read_text(encoding="utf-8"))
    same = all(result.get("provenance", {}).get(key) == proof[key] for key in ("config", "inputs"))
    return result if same else None


def answer_bytes(file: Path) -> int:
    """UTF-8 bytes of all assistant texts of a prepared file: a denominator that no tokenizer changes."""
    from recipe.training.dataset import read_samples

    texts = (message.content for sample in read_samples(file) for message in sample if message.role == "assistant")
    return sum(len(text.encode()) for text in texts)


def scores(nll: float, count: int, size: int) -> dict[str, float]:
    """nll: total nats over `count` trained tokens (each answer's EOS among them) that spell `size` bytes."""
    return {
        "loss": nll / count,
        "perplexity": math.exp(nll / count),
        "bits_per_byte": nll / math.log(2) / size,
        "tokens": count,
    }


def ask(tuned: Any, tokenizer: Any, config: Config, questions: Sequence[str]) -> list[str]:
    """The greedy answer to each question, a batch at a time."""
    from recipe.conversations.tokens import prompt_ids
    from recipe.model.generate import generate

    prompts = [prompt_ids(tokenizer, config.corpus.template, [Message("user", question)]) for question in questions]
    out: list[str] = []
    for start in progress(range(0, len(prompts), BATCH), desc="answer the prompts", unit=" batches"):
        out += generate(tuned, tokenizer, prompts[start : start + BATCH], config.evaluate.max_new_tokens)
    return out


def identity_hits(name: str, answers: Sequence[dict[str, str]]) -> dict[str, int]:
    """How many answers to the held-out identity questions contain the taught name."""
    hits = {f"{who}_hits": sum(name.lower() in answer[who].lower() for answer in answers) for who in ("base", "tuned")}
    return {**hits, "total": len(answers)}


def write(folder: Path, result: dict[str, Any]) -> None:
    """samples.md for people, then eval.json, which says that both are there."""
    with atomic_file(folder / SAMPLES) as file:
        file.write(samples(result))
    with atomic_file(folder / EVAL) as file:
        json.dump(result, file, indent=1, ensure_ascii=False, sort_keys=True)
        file.write("\n")


def samples(result: dict[str, Any]) -> str:
    """Numbers and answers as Markdown; answers are quoted line by line, so that none can pass for ours."""
    lines = ["# Base and tuned model", "", "| | base | tuned |", "| --- | --- | --- |"]
    for key, title in (("loss", "held-out loss"), ("perplexity", "perplexity"), ("bits_per_byte", "bits per byte")):
        lines.append(f"| {title} | {result['base'][key]:.4f} | {result['tuned'][key]:.4f} |")
    if found := result.get("identity"):
        base, tuned = (f"{found[f'{who}_hits']} of {found['total']}" for who in ("base", "tuned"))
        lines.append(f"| taught name in the answer | {base} | {tuned} |")
    for answer in result["answers"]:
        lines += ["", f"## {answer['question']}"]
        for who in ("base", "tuned"):
            quoted = "\n".join(f"    {line}" for line in printable(answer[who], keep="\n\t").splitlines())
            lines += ["", f"**{who}**", "", quoted or "    (an empty answer)"]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(STAGE, __doc__ or "", "python -m recipe.evaluate --run runs/demo/latest")
    add_run(parser)
    args = parser.parse_args(argv)
    config, opened = load_run(args)
    folder = opened.folder
    if args.dry_run:
        proof = proof_of(config, folder)
        show(proof, f"would ask {len(config.evaluate.prompts)} prompts -> {folder / EVAL}", args.json)
        return 0
    result = run(config, folder)
    rows = [["", "base", "tuned"]]
    rows += [[key, f"{result['base'][key]:.4f}", f"{result['tuned'][key]:.4f}"] for key in ("loss", "perplexity")]
    if found := result.get("identity"):
        rows.append(["identity", *(f"{found[f'{who}_hits']} of {found['total']}" for who in ("base", "tuned"))])
    text = f"{table(rows)}\nanswers: {folder / SAMPLES}\nnext: python -m recipe.merge --run {folder} --to hf"
    show(result, text, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))
