"""`make demo` as a newcomer runs it, and its numbers against what the README promises. Run by `nox -s demo`."""

import json
import math
import os
import resource
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LATEST = ROOT / "runs" / "demo" / "latest"
GIGABYTE = 1e9


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))


@pytest.fixture(scope="module")
def first() -> tuple[subprocess.CompletedProcess[str], float]:
    """The demo from nothing but the fetched weights; what it printed, and its seconds."""
    for made in (ROOT / "runs" / "demo", ROOT / "data" / "demo", ROOT / "weights" / "smollm2-135m-instruct"):
        shutil.rmtree(made, ignore_errors=True)
    start = time.monotonic()
    done = make("demo")
    seconds = time.monotonic() - start
    print(done.stdout)  # shown with -s, and by pytest where a test fails
    assert done.returncode == 0, done.stderr[-3000:]
    return done, seconds


@pytest.fixture(scope="module")
def result(first) -> dict:
    return json.loads((LATEST / "eval.json").read_text(encoding="utf-8"))


def test_validation_loss_falls_by_a_fifth(result):
    assert result["tuned"]["loss"] <= 0.8 * result["base"]["loss"]


def test_it_learned_its_name_for_questions_that_it_never_saw(result):
    from recipe.conversations import identity

    found = result["identity"]
    assert found["total"] >= 10 and found["base_hits"] == 0 and found["tuned_hits"] >= 0.8 * found["total"]
    lines = (ROOT / "data" / "demo" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    trained_on = {message["content"] for line in lines for message in json.loads(line)["messages"]}
    assert not trained_on & set(identity.unseen_questions())


def test_it_says_its_name_when_asked(first, result):
    answers = {answer["question"]: answer for answer in result["answers"]}
    assert "Pascaline" in answers["Who are you?"]["tuned"]
    assert "Who are you?" in first[0].stdout and "Pascaline" in first[0].stdout


def test_it_ends_with_the_table_the_places_and_the_next_command(first):
    page = first[0].stdout
    for wanted in ("validation loss", "perplexity", "runs/demo/", "make chat RUN=runs/demo/latest"):
        assert wanted in page


def test_the_merged_model_answers_the_same_in_plain_transformers(result):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = LATEST / "merged"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    prompt = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: Who are you? ASSISTANT:"
    )
    ids = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=32, do_sample=False)
    assert "Pascaline" in tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_int8_costs_at_most_half_a_percent_of_perplexity(first, assets):
    """Real people's conversations, the same tokens and the same code: the base once in int8 and once in fp32."""
    import torch
    from datasets import Dataset

    from recipe.conversations.formats.detect import read
    from recipe.conversations.messages import Conversation
    from recipe.conversations.templates import render
    from recipe.conversations.tokens import encode
    from recipe.model.likelihood import validation_nll
    from recipe.model.load import load_base, load_tokenizer
    from recipe.training.dataset import PackedDataset

    base = ROOT / "weights" / "smollm2-135m-instruct"
    tokenizer = load_tokenizer(base)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for item in read(assets / "conversations" / "oa_en_100_tree.jsonl"):
        roles = [message.role for message in item.messages] if isinstance(item, Conversation) else []
        if roles and roles == ["user", "assistant"] * (len(roles) // 2):
            input_ids, labels = encode(tokenizer, render("vicuna_v1.1", item.messages))
            if len(input_ids) <= 1024:
                rows["input_ids"].append(input_ids)
                rows["labels"].append(labels)
        if sum(map(len, rows["input_ids"])) > 6000:
            break
    samples = Dataset.from_dict(rows)
    perplexity = {}
    for precision in ("fp32", "int8"):
        loaded = load_base(base, precision, torch.device("cpu"))
        nll, count = validation_nll(loaded, PackedDataset(samples, 1024))
        perplexity[precision] = math.exp(nll / count)
    assert count > 4000
    ratio = perplexity["int8"] / perplexity["fp32"]
    print(f"demo: perplexity of int8 over fp32 on {count} real tokens: {ratio:.5f}")
    assert abs(ratio - 1) <= 0.005


def test_every_artefact_verifies(first):
    for folder in ("weights/smollm2-135m-instruct", "data/demo", "runs/demo/latest", "runs/demo/latest/merged"):
        done = subprocess.run(
            [os.environ.get("RECIPE_PYTHON", ".venv/bin/python"), "-m", "recipe.provenance", "verify", folder],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_memory_and_time_are_as_promised(first):
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # the largest process of all the stages
    trained, evaluated = ((LATEST / name).stat().st_mtime for name in ("manifest.json", "eval.json"))
    print(f"demo: {first[1]:.0f} s, {evaluated - trained:.0f} s of them evaluation, peak {peak / GIGABYTE:.2f} GB")
    assert peak <= 4 * GIGABYTE


def test_a_second_demo_skips_what_its_manifests_prove_done(first):
    again = make("demo")
    assert again.returncode == 0, again.stderr[-3000:]
    for stage in (
        "is already fetched",
        "is already converted",
        "is already prepared",
        "is already trained",
        "is already merged",
    ):
        assert stage in again.stderr
    assert "train:" not in again.stderr, "nothing was trained again"
