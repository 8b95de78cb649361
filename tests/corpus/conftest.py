"""A small base and source, and the stage as a command."""

import json
from pathlib import Path

import pytest

from recipe import corpus
from recipe.core.cli import entry
from tests.corpus.records import sharegpt


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE without merges: a token is a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate(["<|im_end|>", *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def base(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "raw.json"
    path.write_text(json.dumps([sharegpt(number, pairs=1 + number % 9) for number in range(40)]))
    return path


@pytest.fixture
def command(base: Path, tmp_path: Path):
    """Runs the stage; returns its exit code."""

    def run(*arguments: object) -> int:
        places = ["--output", str(tmp_path / "out"), "--tokenizer", str(base)]
        return entry(lambda: corpus.main([*places, *map(str, arguments)]))

    return run
