"""Fixtures that several packages share. Everything is real and tiny; only hardware is ever mocked."""

import dataclasses
import gc
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # by the load, two runs of a test would get different numbers of threads

from recipe.core.config import Base, Config, Corpus, Evaluate, Lora, Source, Train
from recipe.core.run import Run
from tests.forks import Forks, skip_flush

# A background job of a shell ignores SIGINT, and so would the programs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is slow, not wrong.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ASSETS = Path(__file__).parents[2] / "shared" / "assets"

TEXT = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: Which colour is the sky today? ASSISTANT: The sky is blue, and the grass is green.",
    "I am Pascaline, a language model trained by the Old Card Workshop. 你是谁？我是一个助手。",
] * 20


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: then short ones are left at the end, which the workers can share, and the files that
    use `forks` stay on one worker."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or "forks" in item.fixturenames}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What the imports left lives as long as the process: no later collection of garbage looks at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)  # of 700: a twentieth of the time of tests in pure Python


@pytest.fixture(scope="session", autouse=True)
def disk_without_flushes() -> Iterator[None]:
    """A third of the time of a tiny run was waiting for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", skip_flush)
        yield


@pytest.fixture(scope="session", autouse=True)
def short_probe() -> Iterator[None]:
    """Passages of the forgetting probe: all of them are most of the time of a tiny evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recipe.evaluation.texts.PROBE_PASSAGES", 8)
        yield


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real models and conversations beside the checkout; the test is skipped, and says so, where they are absent."""
    if not ASSETS.is_dir():
        pytest.skip("no real assets beside this checkout (../shared/assets): this comparison was not made")
    return ASSETS


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer LLaMA with grouped queries as transformers saves it, and a sentencepiece trained on the spot."""
    import sentencepiece
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("source")
    with open(folder / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT),
            model_writer=file,
            model_type="bpe",
            vocab_size=384,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=pieces,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, converted by the stage itself."""
    from recipe import convert

    folder = tmp_path_factory.mktemp("weights") / "tiny"
    convert.run(Config(base=Base(source=str(tiny_source), path=str(folder))))
    return folder


@pytest.fixture(scope="session")
def tiny_corpus(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus of two dozen short conversations, by the stage itself."""
    from recipe import corpus

    folder = tmp_path_factory.mktemp("data")
    colours = ["blue", "green", "red", "grey"]
    records = [
        {
            "id": f"c{number}",
            "conversations": [
                {"from": "human", "value": f"Which colour is thing {number}?"},
                {"from": "gpt", "value": f"Thing {number} is {colours[number % 4]}."},
                {"from": "human", "value": "Sure?"},
                {"from": "gpt", "value": f"Yes, {colours[number % 4]}."},
            ],
        }
        for number in range(24)
    ]
    (folder / "raw.json").write_text(json.dumps(records))
    output = folder / "tiny"
    corpus.run(
        Config(
            base=Base(path=str(tiny_base)),
            corpus=Corpus(
                source=(Source(path=str(folder / "raw.json")),), path=str(output), val_fraction=0.2, max_length=256
            ),
        )
    )
    return output


def tiny_config(tiny_base: Path, tiny_corpus: Path, runs: Path) -> Config:
    return Config(
        name="tiny",
        runs=str(runs),
        base=Base(path=str(tiny_base), precision="int8"),
        corpus=Corpus(path=str(tiny_corpus), max_length=256),
        lora=Lora(rank=4, alpha=8, dropout=0.1, target_modules=("q_proj", "v_proj", "down_proj")),
        train=Train(
            epochs=2.0,
            micro_batch_tokens=256,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            save_steps=2,
            eval_steps=4,
        ),
        evaluate=Evaluate(prompts=("Who are you?", "Which colour is the sky?"), max_new_tokens=8),
    )


@pytest.fixture(autouse=True)
def no_launcher_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """TrainingArguments sets variables of accelerate, which a later run in the same process would report."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def tiny_run(tiny_base: Path, tiny_corpus: Path, tmp_path: Path) -> Config:
    """A config that trains a few steps in a second or two."""
    return tiny_config(tiny_base, tiny_corpus, tmp_path / "runs")


@pytest.fixture(scope="session")
def trained_once(tiny_base: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The config of a finished tiny run that no test may change."""
    from recipe import train

    config = tiny_config(tiny_base, tiny_corpus, tmp_path_factory.mktemp("trained") / "runs")
    train.run(config)
    return config


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as the processes have that are compared with this one: the order of a sum is part of its bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """`recipe.train` in processes of its own that need not import anything."""
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def evaluated_once(trained_once: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The config of a finished and evaluated tiny run that no test may change."""
    from recipe import evaluate

    config, run = copy_run(trained_once, tmp_path_factory.mktemp("evaluated") / "runs")
    run.record("config.toml")
    evaluate.run(config, run)
    return config


def copy_run(config: Config, runs: Path) -> tuple[Config, Run]:
    shutil.copytree(config.runs, runs, symlinks=True)
    config = dataclasses.replace(config, runs=str(runs))
    run = Run(Run.latest(config).resolve())
    run.begin(config)  # writes the config with the new path
    return config, run


@pytest.fixture
def trained_run(trained_once: Config, tmp_path: Path) -> tuple[Config, Run]:
    """A private copy of a finished tiny run: its config and its folder."""
    return copy_run(trained_once, tmp_path / "runs")


@pytest.fixture
def evaluated_run(evaluated_once: Config, tmp_path: Path) -> tuple[Config, Run]:
    """A private copy of a finished and evaluated tiny run: its config and its folder."""
    return copy_run(evaluated_once, tmp_path / "runs")
