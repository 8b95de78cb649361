"""The real lm-eval against a server of the demo's run: its log-likelihoods equal ours. After test_demo.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from programs import start_server

ROOT = Path(__file__).parents[2]
LATEST = ROOT / "runs" / "demo" / "latest"
BASE = ROOT / "weights" / "smollm2-135m-instruct"
TASK = """\
task: facts
dataset_path: json
dataset_kwargs:
  data_files: {file}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""
QUESTIONS = [
    {
        "question": "Which colour is the clear sky at noon?",
        "choices": ["blue", "green and square", "loud"],
        "answer": 0,
    },
    {"question": "What does a GPU do?", "choices": ["It bakes bread.", "It multiplies numbers."], "answer": 1},
    {"question": "Wie heißt die Hauptstadt von Österreich? 你好", "choices": ["Wien", "Köln </s>"], "answer": 0},
]


@pytest.fixture(scope="module")
def python() -> str:
    if "LM_EVAL_PYTHON" not in os.environ:
        pytest.skip("no environment with lm-eval: `nox -s demo` makes one")
    if not (LATEST / "eval.json").is_file():
        pytest.skip("no finished run of the demo: `nox -s demo` makes one")
    return os.environ["LM_EVAL_PYTHON"]


def lm_eval(python: str, model: str, address: str, folder: Path) -> dict[tuple[str, str], float]:
    """The log-likelihood of every (question, choice), by the command of recipe/serving/README.md."""
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)), encoding="utf-8")
    (folder / "facts.yaml").write_text(TASK.format(file=folder / "questions.jsonl"), encoding="utf-8")
    arguments = f"model={model},base_url={address}v1/completions,tokenizer={BASE},num_concurrent=1,max_length=2048"
    done = subprocess.run(
        [python, "-m", "lm_eval", "--model", "local-completions", "--tasks", "facts", "--batch_size", "1",
         "--model_args", arguments, "--include_path", folder, "--log_samples", "--output_path", folder / "out"],
        capture_output=True, text=True, cwd=folder, env={**os.environ, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    found = {}
    for line in samples.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        for asked, response in zip(sample["arguments"].values(), sample["resps"], strict=True):
            found[asked["arg_0"], asked["arg_1"]] = float(response[0][0])
    return found


def ours(model: torch.nn.Module, tokenizer, context: str, continuation: str) -> float:
    """The same by the code that evaluates and trains, of the tokens that lm-eval scores."""
    from recipe.model.likelihood import trained_nll

    ids = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
    begin = len(tokenizer(context, add_special_tokens=False)["input_ids"])
    batch = {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([[-100] * begin + ids[begin:]]),
        "position_ids": torch.arange(len(ids))[None],
        "lengths": [len(ids)],
        "prefix": 0,
    }
    with torch.no_grad():
        return -trained_nll(model, batch)[0].item()


def test_its_log_likelihoods_equal_ours(python, tmp_path):
    from recipe.core.run import Run
    from recipe.model.open import open_run

    run = Run.open(LATEST)
    opened = open_run(run, run.config())
    with start_server() as start:
        _, address = start("--run", LATEST)
        for name in ("base", "tuned"):
            (tmp_path / name).mkdir()
            found = lm_eval(python, name, address, tmp_path / name)
            assert len(found) == sum(len(item["choices"]) for item in QUESTIONS)
            if name == "base":
                with opened.model.disable_adapter():
                    expected = {pair: ours(opened.model, opened.tokenizer, *pair) for pair in found}
            else:
                expected = {pair: ours(opened.model, opened.tokenizer, *pair) for pair in found}
            assert found == pytest.approx(expected, rel=1e-4)
