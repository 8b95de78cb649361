"""Tokenizers of the two kinds, trained on the spot."""

import io
from pathlib import Path

import pytest

TEXT = [
    "Hello, who are you? I am a small assistant, made for this test.",
    "USER: How do I sort a list? ASSISTANT: Call sorted(list).",
    "def f(x):\n    return {'a': [x, x + 1]}\n",
    "你好，我是一个助手。你能做什么？",
    "<p>a</p> <s>b</s> <li>c</li> <ul>rows</ul> </s></s>",
    "as> bs> cs> ds> es> fs> gs>",
    "Numbers 1 2 3 and     runs of     spaces.",
] * 20


@pytest.fixture(scope="session")
def sentencepiece_model() -> bytes:
    """A BPE model with byte fallback and identity normalisation, as LLaMA's.

    Unlike there, a piece may mix letters and signs, so that `</` and `s>` become pieces: the hardest case for text
    that spells out `</s>`.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        split_by_unicode_script=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def sentencepiece_processor(sentencepiece_model: bytes):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)


@pytest.fixture(scope="session")
def llama_tokenizer(sentencepiece_model: bytes, tmp_path_factory: pytest.TempPathFactory):
    return load_llama(_write(tmp_path_factory.mktemp("spm") / "tokenizer.model", sentencepiece_model))


@pytest.fixture(scope="session")
def byte_level_tokenizer():
    """A byte-level BPE with ChatML's special tokens, without BOS, as SmolLM2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|im_start|>", "<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def llama2_tokenizer(assets: Path):
    """The real 32,000 pieces."""
    return load_llama(assets / "tokenizers" / "llama2_tokenizer.model")


def load_llama(path: Path):
    """transformers' own conversion of a sentencepiece model, in LLaMA's original ("legacy") behaviour."""
    from transformers import LlamaTokenizerFast

    # Without add_prefix_space=True, transformers 4.49 leaves the dummy prefix out.
    return LlamaTokenizerFast(vocab_file=str(path), legacy=True, add_prefix_space=True)


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
