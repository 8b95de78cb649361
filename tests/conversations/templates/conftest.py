"""Tokenizers for every template: small ones trained on the spot, and real ones where they are present."""

from pathlib import Path

import pytest

from recipe.checkpoints.gguf_tokenizer import pre_tokenizer

WEIGHTS = Path(__file__).parents[3] / "weights"
TEXT = [
    "user\n\nHello, who are you?\n\n\nassistant\n\nI am a small assistant.\n",
    "system\n\n  You know   everything.  \n \n def f(x):\n\treturn 'x'\n",
    "你好，我是一个助手。\n\n你能做什么？ 1234567",
] * 20


@pytest.fixture(scope="session")
def llama3_tokenizer():
    """A byte-level BPE with LLaMA 3's pre-tokenizer and special tokens; it begins a text with BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer("llama-bpe")
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    bos = special[0]
    backend.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token="<|end_of_text|>")


@pytest.fixture(scope="session")
def metaspace_tokenizer(llama_tokenizer):
    """The small sentencepiece model with the prefix at the start of the whole text alone (`prepend_scheme="first"`)."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(llama_tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Sequence([])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.post_processor = processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def smollm2_tokenizer():
    """The demo's, as `convert` writes it."""
    from transformers import AutoTokenizer

    folder = WEIGHTS / "smollm2-135m-instruct"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("weights/smollm2-135m-instruct is absent (`make demo` makes it): this comparison was not made")
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


@pytest.fixture(scope="session")
def smollm2_template() -> str:
    """The chat template that SmolLM2's makers put into its GGUF."""
    import gguf

    files = sorted((WEIGHTS / "raw" / "smollm2-135m-instruct").glob("*.gguf"))
    if not files:
        pytest.skip("weights/raw/smollm2-135m-instruct is absent (`make fetch`): this comparison was not made")
    return gguf.GGUFReader(files[0]).fields["tokenizer.chat_template"].contents()
