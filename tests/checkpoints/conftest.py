"""Tiny real checkpoints: a sentencepiece trained on the spot and a two-layer LLaMA with grouped queries."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM

TEXT = [
    "The quick brown fox jumps over the lazy dog, and then it does so again.",
    "def area(radius):\n    return 3.14159 * radius ** 2",
    "Wer fragt, bekommt eine Antwort; who asks gets an answer.",
    "memory of the card, the heads of the layer, the weights of the model",
    "0123456789 !\"#$%&'()*+,-./:;<=>?@[]^_`{|}~ </s> <s> s> </",
]


@pytest.fixture(scope="session")
def sentencepiece_model() -> bytes:
    """A BPE with the settings of LLaMA's tokenizer, 384 pieces."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_writer=out,
        model_type="bpe",
        vocab_size=384,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        minloglevel=2,
    )
    return out.getvalue()


@pytest.fixture(scope="session")
def llama() -> LlamaForCausalLM:
    """Two layers, 4 heads, 2 key-value heads, 384 tokens; untied; fp32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=88,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=50000.0,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def hf_folder(tmp_path: Path, llama: LlamaForCausalLM, sentencepiece_model: bytes) -> Path:
    """The model as transformers saves it, with the tokenizer.model only."""
    folder = tmp_path / "hf"
    llama.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model)
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
