"""llama.cpp against transformers on what this recipe writes: prompts by the template inside the file, greedy tokens.

`python -m nox -s llamacpp` compiles llama.cpp once, runs this, and leaves the numbers in results.json.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from recipe import convert, merge
from recipe.checkpoints import gguf_out
from recipe.conversations.messages import Message
from recipe.conversations.tokens import prompt_ids
from recipe.core.config import Base, Config
from recipe.core.run import Run
from recipe.model.load import load_tokenizer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DEMO = ROOT / "runs" / "demo" / "latest"
TOKENS = 40
TEMPLATES = ("vicuna_v1.1", "vicuna_v0", "alpaca", "alpaca_short", "llama-2", "zephyr")
LEAST = {
    "f16": 1.0,
    "gguf-lora": 0.95,
    "q8_0": 0.95,
    "q4_0": 0.0,
}  # of the tokens that are the same; q4_0: measured only
CONVERSATIONS = (
    ("Once upon a time",),
    ("Who are you?",),
    ("Hi!", "Hello! How can I help?", "Tell me a story about a  cat.\nA short one."),
    ("What is 12345 + 1?", "12346", "Und auf Deutsch? 你好, é", "Zwölf.", " Thanks "),
)
SYSTEMS = (None, "Answer briefly.")
Item = tuple[list[Message], list[int]]  # a conversation, and transformers' greedy tokens after it


@pytest.fixture(scope="session")
def results():
    """Collects the numbers; results.json is written at the end."""
    found: dict[str, Any] = {"command": "python -m nox -s llamacpp", "tokens_per_prompt": TOKENS, "models": {}}
    yield found
    with open(HERE / "results.json", "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1, sort_keys=True)
        file.write("\n")


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory, assets: Path) -> tuple[Path, Path]:
    """(a real pretrained LLaMA of 260,000 parameters, an adapter of peft for it that changes its answers)"""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("stories")
    shutil.copytree(assets / "models/stories260K/meta", folder / "raw")
    keep_spaces(folder / "raw" / "tokenizer.model")
    convert.run(Config(base=Base(source=str(folder / "raw"), path=str(folder / "base"))))
    base = AutoModelForCausalLM.from_pretrained(folder / "base", torch_dtype=torch.float32)
    tuned = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "down_proj"]))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    tuned.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


def keep_spaces(file: Path) -> None:
    """As LLaMA's tokenizer does. This one removes repeated spaces, which llama.cpp does not do."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(file.read_bytes())
    proto.normalizer_spec.remove_extra_whitespaces = False
    file.write_bytes(proto.SerializeToString())


def conversations() -> list[list[Message]]:
    return [
        [Message("system", system)] * (system is not None)
        + [Message(("user", "assistant")[index % 2], text) for index, text in enumerate(turns)]
        for turns in CONVERSATIONS
        for system in SYSTEMS
    ]


def reference(folder: Path, adapter: Path | None, template: str) -> list[Item]:
    """Greedy tokens of transformers in fp32, with peft where there is an adapter, up to and with the end of text."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).eval()
    tokenizer, out = load_tokenizer(folder), []
    for messages in conversations():
        ids = torch.tensor([prompt_ids(tokenizer, template, messages)])
        settings = {"do_sample": False, "temperature": None, "top_p": None, "repetition_penalty": 1.0}
        answer = model.generate(input_ids=ids, attention_mask=ids * 0 + 1, max_new_tokens=TOKENS, **settings)
        out.append((messages, answer[0, ids.shape[1] :].tolist()))
    return out


def ask(model: Path, items: Sequence[Item], lora: Path | None = None) -> tuple[list[dict[str, Any]], str]:
    """What llama.cpp makes of them, and its version."""
    task = {
        "model": str(model),
        "lora": str(lora) if lora else None,
        "items": [
            {"messages": [{"role": each.role, "content": each.content} for each in messages], "reference": tokens}
            for messages, tokens in items
        ],
    }
    command = [os.environ["LLAMACPP_PYTHON"], str(HERE / "ask.py")]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    return found["items"], found["version"]


def compare(name: str, kind: str, folder: Path, template: str, items: Sequence[Item], found: Any, results: Any) -> None:
    """The prompts are ours, token by token; enough of the greedy tokens are those of transformers."""
    answers, version = found
    tokenizer = load_tokenizer(folder)
    for (messages, _), answer in zip(items, answers, strict=True):
        assert answer["ids"] == prompt_ids(tokenizer, template, messages), messages
    pairs = [
        (mine, its)
        for (_, tokens), answer in zip(items, answers, strict=True)
        for mine, its in zip(tokens, answer["forced"], strict=True)
    ]
    same = sum(mine == its for mine, its in pairs)
    runs = sum(tokens == answer["greedy"] for (_, tokens), answer in zip(items, answers, strict=True))
    results["llama_cpp_python"] = version
    results["models"].setdefault(name, {}).setdefault(kind, {})[template] = {
        "prompts_equal": len(items),
        "greedy_answers_equal": [runs, len(items)],
        "most_probable_tokens_equal": [same, len(pairs)],
    }
    assert same >= LEAST[kind] * len(pairs), f"{same} of {len(pairs)} tokens are the same"
    if LEAST[kind] == 1:
        assert runs == len(items), f"{runs} of {len(items)} greedy answers are the same"


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_real_model_and_an_adapter_of_peft(template, stories, tmp_path, results) -> None:
    base, adapter = stories
    job = merge.Merge.of_folders(base, adapter, tmp_path / "merged", template)
    check_formats("stories260K", job, template, tmp_path, results)


def test_the_demos_run(tmp_path, results) -> None:
    if not (DEMO / "manifest.json").is_file():
        pytest.skip("no finished demo run (make demo): this comparison was not made")
    run = Run.open(DEMO)
    config = run.config()
    job = merge.Merge.of_run(config, run.folder)
    job = merge.Merge(job.name, job.base, job.adapter, tmp_path / "merged", job.template, job.inputs, config)
    check_formats("demo", job, job.template, tmp_path, results)


def check_formats(name: str, job: merge.Merge, template: str, folder: Path, results: dict[str, Any]) -> None:
    """f16, q8_0 and q4_0 of the merged model, and the base with the adapter beside it."""
    merge.merge(job, "hf")
    items = reference(job.output, None, template)
    for kind, to in (("f16", "gguf"), ("q8_0", "gguf-q8_0"), ("q4_0", "gguf-q4_0")):
        merge.merge(job, to)
        (file,) = job.path(to).glob("*.gguf")
        compare(name, kind, job.output, template, items, ask(file, items), results)
    gguf_out.write(job.base, folder / "base.gguf", "f16", merge.chat_template(job))
    merge.merge(job, "gguf-lora")
    (lora,) = job.path("gguf-lora").glob("*.gguf")
    items = reference(job.base, job.adapter, template)
    compare(name, "gguf-lora", job.base, template, items, ask(folder / "base.gguf", items, lora), results)
